//! How a session ended, in the words of the protocol.
//!
//! Must not know: channels, frames.

use serde_json::json;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::stream) enum Outcome {
    /// A process ended with this code; or there was none to end, which is a 0.
    Exit(i32),
    /// Something went wrong; what.
    Failed(String),
}

/// Longest text of a failure; it may quote what a client sent.
const TEXT_MAX: usize = 8 << 10;

impl Outcome {
    /// The content of the error channel: a Kubernetes Status (`json`), or the text of versions before v4.
    pub(in crate::stream) fn told(&self, json: bool) -> Vec<u8> {
        match (self, json) {
            (Outcome::Exit(0), false) => Vec::new(),
            (Outcome::Exit(0), true) => json!({"metadata": {}, "status": "Success"}).to_string().into(),
            (Outcome::Exit(code), false) => {
                format!("command terminated with non-zero exit code: {code}").into()
            }
            (Outcome::Exit(code), true) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })
            .to_string()
            .into(),
            (Outcome::Failed(text), false) => cut(text).to_owned().into(),
            (Outcome::Failed(text), true) => json!({
                "metadata": {},
                "status": "Failure",
                "message": cut(text),
                "reason": "InternalError",
                "details": {"causes": [{"message": cut(text)}]},
                "code": 500,
            })
            .to_string()
            .into(),
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(outcome: &Outcome) -> serde_json::Value {
        serde_json::from_slice(&outcome.told(true)).unwrap()
    }

    #[test]
    fn an_exit_code_is_what_clients_look_for() {
        assert_eq!(status(&Outcome::Exit(0))["status"], "Success");
        let failure = status(&Outcome::Exit(137));
        assert_eq!((&failure["status"], &failure["reason"]), (&json!("Failure"), &json!("NonZeroExitCode")));
        assert_eq!(failure["details"]["causes"][0], json!({"reason": "ExitCode", "message": "137"}));
    }

    #[test]
    fn old_versions_say_nothing_when_all_is_well_and_a_text_otherwise() {
        assert_eq!(Outcome::Exit(0).told(false), b"");
        assert_eq!(Outcome::Exit(3).told(false), b"command terminated with non-zero exit code: 3");
        assert_eq!(Outcome::Failed("no such program".into()).told(false), b"no such program");
    }

    #[test]
    fn a_failure_is_an_internal_error_with_its_text_cut_to_what_fits_a_frame() {
        let failure = status(&Outcome::Failed("gone".into()));
        assert_eq!(
            (&failure["reason"], &failure["message"], &failure["code"]),
            (&json!("InternalError"), &json!("gone"), &json!(500))
        );
        assert!(Outcome::Failed("\u{fc}".repeat(100_000)).told(true).len() < super::super::CHUNK);
    }
}
