use std::path::Path;

use super::*;

fn problems(text: &str) -> Vec<String> {
    Config::parse(text).expect_err("the text must be refused")
}

#[test]
fn the_default_file_says_what_is_so_anyway() {
    assert_eq!(Config::parse(&Config::default_text()), Ok(Config::default()));
}

#[test]
fn the_default_file_holds_every_key_and_describes_it() {
    let text = Config::default_text();
    let all: toml::Table = toml::Table::try_from(Config::default()).unwrap();
    assert_eq!(text.parse::<toml::Table>().unwrap(), all);
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#')) {
        assert!(number > 0 && lines[number - 1].starts_with("# "), "no description above: {line}");
    }
}

#[test]
fn an_empty_file_is_all_defaults() {
    assert_eq!(Config::parse(""), Ok(Config::default()));
}

#[test]
fn values_are_taken() {
    let config =
        Config::parse("log = \"debug\"\n[network]\nipv6 = \"\"\nmtu = 1400\n[image]\npinned = [\"a\"]")
            .unwrap();
    assert_eq!((config.log.as_str(), config.network.ipv6.as_str(), config.network.mtu), ("debug", "", 1400));
    assert_eq!(config.image.pinned, ["a"]);
    assert_eq!(config.state, Config::default().state);
}

#[test]
fn an_unknown_key_is_named_with_its_path_and_the_nearest_one() {
    assert_eq!(
        problems("[network]\nbrigde = \"x\""),
        ["line 2: network.brigde: unknown key; did you mean network.bridge?"]
    );
    assert_eq!(problems("[netwrok]"), ["line 1: netwrok: unknown key; did you mean network?"]);
    assert_eq!(
        problems("[cgroup]\nflavour = 1"),
        [
            "line 2: cgroup.flavour: unknown key; known here: root, driver, default_parent, require_controllers"
        ]
    );
}

#[test]
fn every_problem_is_reported_at_once() {
    let found = problems("rot = 1\nlog = 7\n[cgroup]\nrequire_controllers = \"yes\"\ndriver = \"sytemd\"\n");
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(found.iter().any(|p| p.starts_with("line 2: log: invalid type: integer `7`")), "{found:#?}");
    assert!(found.iter().any(|p| p.starts_with("line 4: cgroup.require_controllers: ")), "{found:#?}");
    assert!(found.iter().any(|p| p.contains("cgroup.driver: \"sytemd\" is neither")), "{found:#?}");
}

#[test]
fn a_section_that_is_a_value_and_text_that_is_no_toml_are_told() {
    assert_eq!(problems("image = 3"), ["line 1: image: expected a section, found integer"]);
    assert!(problems("log = \"info\"\nroot = ")[0].starts_with("line 2: "));
}

#[test]
fn values_that_cannot_work_are_refused() {
    for (text, key) in [
        ("listen = \"tcp://1.2.3.4\"", "listen:"),
        ("root = \"x\"", "root:"),
        ("state = \"/run/../etc\"", "state:"),
        ("state = \"/var/lib/crisp\"", "state:"),
        ("monitor = \"crisp-monitor\"", "monitor:"),
        ("[cgroup]\ndriver = \"systemd\"\ndefault_parent = \"/a-\"", "cgroup.default_parent:"),
        ("[network]\nipv4 = \"10.0.0.0\"", "network.ipv4:"),
        ("[network]\nipv4 = \"\"\nipv6 = \"\"", "network.ipv4:"),
        ("[network]\nmtu = 9", "network.mtu:"),
        ("[network]\nbridge = \"a-name-of-too-many-bytes\"", "network.bridge:"),
        ("[image]\nmax_parallel_downloads = 0", "image.max_parallel_downloads:"),
        ("[container]\nlog_line_bytes = 1", "container.log_line_bytes:"),
        ("[container]\ncapabilities = [\"KILL\", \"cap_kill\"]", "container.capabilities[1]:"),
    ] {
        let found = problems(text);
        assert!(found.len() == 1 && found[0].starts_with(key), "{text}: {found:?}");
    }
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let error = Config::load(Some(Path::new("/nonexistent/crisp.toml"))).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
    assert!(error.to_string().starts_with("read the configuration /nonexistent/crisp.toml: "));
}

#[test]
fn problems_of_a_file_name_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "lisen = \"x\"").unwrap();
    let text = Config::load(Some(file.path())).unwrap_err().to_string();
    assert_eq!(
        text,
        format!("configuration {}: line 1: lisen: unknown key; did you mean listen?", file.path().display())
    );
}

#[test]
fn the_streaming_server_is_on_the_loopback_or_has_tls() {
    for address in ["0.0.0.0", "::", "10.0.0.1", "localhost"] {
        let found = problems(&format!("[stream]\naddress = \"{address}\""));
        assert!(found.len() == 1 && found[0].starts_with("stream.address: "), "{found:#?}");
    }
    let found = problems("[stream]\ntls_key = \"/k\"");
    assert!(found.len() == 1 && found[0].starts_with("stream.tls_certificate: "), "{found:#?}");
    let tls = "tls_certificate = \"/c\"\ntls_key = \"/k\"";
    assert!(Config::parse(&format!("[stream]\naddress = \"10.0.0.1\"\nport = 10010\n{tls}")).is_ok());
    assert!(Config::parse("[stream]\naddress = \"::1\"").is_ok());
}
