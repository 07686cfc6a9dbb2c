//! Stop signals: CRI's enum (alphabetical, not signal numbers), an image's text, and numbers of this kernel.

use crisp_proto::runtime::v1 as cri;

use crate::error::RequestError;

/// Standard signals of Linux by their names (signal(7)).
const NAMES: [(&str, i32); 34] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// A signal's number from `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `RTMAX-1`; `None` when it is none.
#[must_use]
pub fn number(text: &str) -> Option<i32> {
    let in_range = |n: i32| (1..=RTMAX).contains(&n).then_some(n);
    if let Ok(number) = text.parse::<i32>() {
        return in_range(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, &["+", "PLUS"]).map(|n| RTMIN + n).filter(|n| (RTMIN..=RTMAX).contains(n));
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest, &["-", "MINUS"]).map(|n| RTMAX - n).filter(|n| (RTMIN..=RTMAX).contains(n));
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

fn offset(rest: &str, signs: &[&str]) -> Option<i32> {
    if rest.is_empty() {
        return Some(0);
    }
    signs.iter().find_map(|sign| rest.strip_prefix(sign))?.parse().ok()
}

/// What Stop sends: the request's signal, else the image's, else SIGTERM.
///
/// # Errors
/// `Invalid` when the request's value or the image's text names no signal.
pub fn stop_signal(requested: i32, image: Option<&str>) -> Result<i32, RequestError> {
    let requested = cri::Signal::try_from(requested)
        .map_err(|_| RequestError::invalid(format!("stop_signal {requested} is not a CRI signal")))?;
    if requested != cri::Signal::RuntimeDefault {
        let name = requested.as_str_name();
        return number(name).ok_or_else(|| RequestError::invalid(format!("stop_signal {name} is unknown")));
    }
    match image {
        None | Some("") => Ok(15),
        Some(text) => number(text).ok_or_else(|| {
            RequestError::invalid(format!("the image's stop signal {text:?} is not a signal"))
        }),
    }
}

/// The CRI enum value of a signal number, for statuses.
#[must_use]
pub fn to_cri(number: i32) -> cri::Signal {
    let name = match NAMES.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => format!("SIG{name}"),
        None if number == RTMIN => "SIGRTMIN".to_owned(),
        None if number == RTMAX => "SIGRTMAX".to_owned(),
        None if (RTMIN..=RTMIN + 15).contains(&number) => format!("SIGRTMINPLUS{}", number - RTMIN),
        None => format!("SIGRTMAXMINUS{}", RTMAX - number),
    };
    cri::Signal::from_str_name(&name).unwrap_or(cri::Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_write_signals_in_many_ways() {
        for (text, want) in
            [("SIGTERM", 15), ("term", 15), ("15", 15), ("SIGRTMIN+3", 37), ("RTMAX-2", 62), ("SIGQUIT", 3)]
        {
            assert_eq!(number(text), Some(want), "{text}");
        }
        for text in ["", "0", "65", "SIGFOO", "RTMIN+31", "RTMAX+1", "-9"] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn every_cri_signal_is_a_signal_and_comes_back() {
        for value in 1..=65 {
            let Ok(signal) = cri::Signal::try_from(value) else { continue };
            let number = stop_signal(value, None).unwrap();
            let back = to_cri(number);
            assert_eq!(stop_signal(back.into(), None).unwrap(), number, "{}", signal.as_str_name());
        }
    }

    #[test]
    fn the_request_wins_over_the_image_and_term_is_the_default() {
        assert_eq!(stop_signal(cri::Signal::Sigint.into(), Some("SIGQUIT")).unwrap(), 2);
        assert_eq!(stop_signal(0, Some("SIGQUIT")).unwrap(), 3);
        assert_eq!(stop_signal(0, None).unwrap(), 15);
        assert!(stop_signal(0, Some("nonsense")).is_err());
    }
}
