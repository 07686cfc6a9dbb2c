use super::*;

fn of(text: &str, version: Version) -> Result<Vec<String>, ResultProblem> {
    let (_, found) = read(text.as_bytes(), "eth0", version)?;
    Ok(found.iter().map(ToString::to_string).collect())
}

#[test]
fn every_version_gives_the_addresses_of_the_interface_inside() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let family = |number: &str| match version {
            "0.3.1" | "0.4.0" => format!(r#""version":"{number}","#),
            _ => String::new(),
        };
        let text = format!(
            r#"{{"cniVersion":"{version}","interfaces":[{{"name":"br0"}},{{"name":"eth0","sandbox":""}},
            {{"name":"eth0","sandbox":"/run/netns/x","mtu":1500}},{{"name":"eth1","sandbox":"/run/netns/x"}}],
            "ips":[{{{six}"interface":2,"address":"fd00::2/64","gateway":"fd00::1"}},
            {{{four}"interface":2,"address":"10.1.2.3/24"}},{{{four}"interface":3,"address":"10.1.3.3/24"}},
            {{{four}"interface":0,"address":"10.1.2.1/24"}},{{{four}"interface":1,"address":"10.1.4.1/24"}},
            {{{four}"address":"10.9.9.9/32"}}],"routes":[{{"dst":"0.0.0.0/0"}},{{"dst":"::/0","gw":"fd00::1"}}],
            "dns":{{"nameservers":["1.1.1.1"]}}}}"#,
            four = family("4"),
            six = family("6"),
        );
        let found = of(&text, Version::parse(version).unwrap()).unwrap();
        assert_eq!(found, ["10.1.2.3", "10.9.9.9", "fd00::2"], "{version}");
    }
}

#[test]
fn what_is_no_result_is_an_error() {
    let new = Version::V1_1_0;
    for (text, reason) in [
        ("", "EOF while parsing"),
        ("garbage", "expected value"),
        (r#"{"ips":{}}"#, "invalid type"),
        (r#"{"ips":[{"address":"x"}]}"#, "ips[0].address \"x\" is no address with a prefix length"),
        (r#"{"ips":[{"address":"10.0.0.1"}]}"#, "ips[0].address \"10.0.0.1\" is no address with"),
        (r#"{"ips":[{"address":"10.0.0.1/8","gateway":"x"}]}"#, "ips[0].gateway \"x\" is no address"),
        (r#"{"ips":[{"address":"10.0.0.1/8","interface":0}]}"#, "ips[0].interface is 0, and there are 0"),
        (r#"{"ips":[{"address":"10.0.0.1/8","interface":-1}]}"#, "ips[0].interface is -1"),
        (r#"{"routes":[{"dst":"x"}]}"#, "routes[0].dst \"x\" is no network"),
        (r#"{"cniVersion":"7"}"#, "cniVersion \"7\" is not supported"),
        (
            r#"{"cniVersion":"0.4.0","ips":[{"version":"6","address":"10.0.0.1/8"}]}"#,
            "ips[0].address \"10.0.0.1/8\" is no address of the version beside it",
        ),
    ] {
        let said = of(text, new).unwrap_err().to_string();
        assert!(said.starts_with(reason), "{text}: {said}");
    }
    assert!(of("{}", new).unwrap().is_empty());
}
