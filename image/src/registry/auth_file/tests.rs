//! Which secret is found, and what a helper may answer.

use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn file(text: &str) -> Result<AuthFile, AuthFileError> {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    AuthFile::read(&path)
}

fn user(secret: Option<Secret>) -> Option<String> {
    match secret? {
        Secret::Basic { username, password } => Some(format!("{username}:{password}")),
        Secret::Identity(token) => Some(format!("identity {token}")),
        Secret::Bearer(token) => Some(format!("bearer {token}")),
    }
}

#[tokio::test]
async fn the_entry_that_fits_best_is_found() {
    let auth = |text: &str| STANDARD.encode(text);
    let text = serde_json::json!({"auths": {
        "https://index.docker.io/v1/": {"auth": auth("hub:h")},
        "quay.io": {"auth": auth("all:q")},
        "quay.io/team": {"auth": auth("team:t")},
        "quay.io/team/app": {"username": "app", "password": "a"},
        "https://r.example:5000/v2/": {"identitytoken": "refresh"},
        "empty.example": {},
        "token.example": {"registrytoken": "ready"},
    }, "unknown": [1]});
    let file = file(&text.to_string()).unwrap();
    for (host, repository, expected) in [
        ("docker.io", "library/busybox", Some("hub:h")),
        ("registry-1.docker.io", "library/busybox", Some("hub:h")),
        ("quay.io", "other", Some("all:q")),
        ("quay.io", "team/x", Some("team:t")),
        ("quay.io", "teams/x", Some("all:q")),
        ("quay.io", "team/app", Some("app:a")),
        ("r.example:5000", "x", Some("identity refresh")),
        ("r.example", "x", None),
        ("empty.example", "x", None),
        ("token.example", "x", Some("bearer ready")),
        ("evil.example", "quay.io", None),
    ] {
        let found = user(file.secret(host, repository).await.unwrap());
        assert_eq!(found.as_deref(), expected, "{host}/{repository}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_says_so_without_its_content() {
    assert!(AuthFile::read(Path::new("/nowhere/config.json")).is_ok(), "it need not exist");
    let error = file("{\"auths\":\n{\"x\": hunter2}}").unwrap_err().to_string();
    assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
    let odd = file(r#"{"auths":{"x.io":{"auth":"aHVudGVyMg=="}}}"#).unwrap();
    let Err(error) = odd.secret("x.io", "a").await else { panic!("accepted") };
    assert!(error.to_string().contains("x.io") && !format!("{error:?}").contains("hunter2"), "{error:?}");
    let odd = file(r#"{"credHelpers":{"x.io":"../../bin/sh"}}"#).unwrap();
    let Err(error) = odd.secret("x.io", "a").await else { panic!("accepted") };
    assert!(error.to_string().contains("../../bin/sh"), "{error}");
    let odd = file(r#"{"credsStore":"crisp-test-that-nobody-has"}"#).unwrap();
    let Err(error) = odd.secret("x.io", "a").await else { panic!("accepted") };
    assert!(error.to_string().contains("docker-credential-crisp-test-that-nobody-has"), "{error}");
}

#[tokio::test]
async fn a_helper_is_asked_by_its_protocol() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("docker-credential-x");
    let script = r#"#!/bin/sh
[ "$1" = get ] || exit 9
read -r server
case $server in
  none) echo "credentials not found in native keychain"; exit 1 ;;
  broken) echo "what hunter2"; exit 1 ;;
  odd) echo "hunter2" ;;
  token) printf '{"ServerURL":"%s","Username":"<token>","Secret":"refresh"}' "$server" ;;
  *) printf '{"ServerURL":"%s","Username":"u","Secret":"for %s"}' "$server" "$server" ;;
esac
"#;
    // Written by a shell of its own: a file that this process has open for writing, a child of another test's fork
    // has open too, and then it cannot be run.
    let made = std::process::Command::new("sh")
        .args(["-c", "printf %s \"$2\" >\"$1\"", "sh"])
        .arg(&path)
        .arg(script)
        .status()
        .unwrap();
    assert!(made.success());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = path.to_str().unwrap();
    let ask = async |server: &str| ask_program(program, server).await.map(user);
    assert_eq!(ask("r.example").await.unwrap().as_deref(), Some("u:for r.example"));
    assert_eq!(ask("token").await.unwrap().as_deref(), Some("identity refresh"));
    assert_eq!(ask("none").await.unwrap(), None);
    for server in ["broken", "odd"] {
        let error = format!("{:?}", ask(server).await.unwrap_err());
        assert!(error.contains(server) && !error.contains("hunter2"), "{error}");
    }
}
