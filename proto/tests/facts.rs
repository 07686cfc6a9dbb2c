//! The compiled interface is the published one: services, methods, messages, fields, numbers, types and enums.
//!
//! tests/cri-v1.36.json holds the facts of CRI as of Kubernetes 1.36. Both sides become the same tree of text, so a
//! failure prints which entry is missing, extra or different.

use std::{collections::BTreeMap, fs, path::Path};

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use serde_json::Value;

/// Name of an entry (`message Mount.readonly`) and all that is known of it.
type Facts = BTreeMap<String, String>;

fn add(facts: &mut Facts, name: String, value: String) {
    let earlier = facts.insert(name.clone(), value);
    assert!(earlier.is_none(), "{name} is there twice");
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is no text in {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn no_other_keys(value: &Value, known: &[&str]) {
    for key in value.as_object().expect("an object").keys() {
        assert!(known.contains(&key.as_str()), "the facts have a key this test does not compare: {key}");
    }
}

fn published() -> Facts {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cri-v1.36.json");
    let root: Value =
        serde_json::from_slice(&fs::read(path).expect("read the facts")).expect("parse the facts");
    no_other_keys(&root, &["package", "services", "enums", "messages"]);
    let mut facts = Facts::new();
    add(&mut facts, "package".into(), text(&root, "package").into());
    for service in list(&root, "services") {
        no_other_keys(service, &["name", "methods"]);
        for method in list(service, "methods") {
            no_other_keys(method, &["name", "request", "response", "server_streaming", "client_streaming"]);
            let streams = |key: &str| method[key].as_bool().unwrap_or_default();
            add(
                &mut facts,
                format!("method {}.{}", text(service, "name"), text(method, "name")),
                signature(
                    streams("client_streaming"),
                    text(method, "request"),
                    streams("server_streaming"),
                    text(method, "response"),
                ),
            );
        }
    }
    for entry in list(&root, "enums") {
        published_enum(&mut facts, "", entry);
    }
    for message in list(&root, "messages") {
        published_message(&mut facts, message);
    }
    facts
}

fn published_message(facts: &mut Facts, message: &Value) {
    no_other_keys(message, &["name", "fields", "enums"]);
    let name = text(message, "name");
    add(facts, format!("message {name}"), String::new());
    for entry in list(message, "enums") {
        published_enum(facts, &format!("{name}."), entry);
    }
    for field in list(message, "fields") {
        no_other_keys(field, &["name", "number", "type", "label", "deprecated", "oneof"]);
        let label = field["label"].as_str().unwrap_or_default();
        let oneof = field["oneof"].as_str().unwrap_or_default();
        let deprecated = field["deprecated"].as_bool().unwrap_or_default();
        add(
            facts,
            format!("message {name}.{}", text(field, "name")),
            format!(
                "{} {label} {} oneof={oneof} deprecated={deprecated}",
                field["number"],
                text(field, "type")
            ),
        );
    }
}

fn published_enum(facts: &mut Facts, prefix: &str, entry: &Value) {
    no_other_keys(entry, &["name", "values"]);
    let name = format!("{prefix}{}", text(entry, "name"));
    add(facts, format!("enum {name}"), String::new());
    for (value, number) in entry["values"].as_object().expect("values") {
        add(facts, format!("enum {name}.{value}"), number.to_string());
    }
}

fn signature(client: bool, request: &str, server: bool, response: &str) -> String {
    let stream = |on: bool| if on { "stream " } else { "" };
    format!("({}{request}) -> {}{response}", stream(client), stream(server))
}

fn compiled() -> Facts {
    let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    let set = FileDescriptorSet::decode(bytes).expect("decode the descriptors");
    let file = set.file.iter().find(|f| f.name() == "api.proto").expect("api.proto was compiled");
    let mut facts = Facts::new();
    add(&mut facts, "package".into(), file.package().into());
    for service in &file.service {
        compiled_service(&mut facts, file, service);
    }
    for entry in &file.enum_type {
        compiled_enum(&mut facts, "", entry);
    }
    for message in &file.message_type {
        compiled_message(&mut facts, file, message);
    }
    facts
}

/// `.runtime.v1.Mount` -> `Mount`.
fn local<'a>(file: &FileDescriptorProto, name: &'a str) -> &'a str {
    name.strip_prefix(&format!(".{}.", file.package())).unwrap_or(name)
}

fn compiled_service(facts: &mut Facts, file: &FileDescriptorProto, service: &ServiceDescriptorProto) {
    for method in &service.method {
        add(
            facts,
            format!("method {}.{}", service.name(), method.name()),
            signature(
                method.client_streaming(),
                local(file, method.input_type()),
                method.server_streaming(),
                local(file, method.output_type()),
            ),
        );
    }
}

fn compiled_message(facts: &mut Facts, file: &FileDescriptorProto, message: &DescriptorProto) {
    let name = message.name();
    add(facts, format!("message {name}"), String::new());
    for entry in &message.enum_type {
        compiled_enum(facts, &format!("{name}."), entry);
    }
    for nested in &message.nested_type {
        let map = nested.options.as_ref().is_some_and(|o| o.map_entry());
        assert!(map, "{name} holds a message of its own: {}", nested.name());
    }
    for field in &message.field {
        let map = message.nested_type.iter().find(|n| {
            field.r#type() == Type::Message
                && local(file, field.type_name()) == format!("{name}.{}", n.name())
        });
        let (label, kind) = match map {
            Some(entry) => ("", map_type(file, entry)),
            None => (
                if field.label() == Label::Repeated { "repeated" } else { "" },
                field_type(file, message, field),
            ),
        };
        let oneof = field.oneof_index.map(|i| message.oneof_decl[usize::try_from(i).expect("index")].name());
        let deprecated = field.options.as_ref().is_some_and(|o| o.deprecated());
        add(
            facts,
            format!("message {name}.{}", field.name()),
            format!(
                "{} {label} {kind} oneof={} deprecated={deprecated}",
                field.number(),
                oneof.unwrap_or_default()
            ),
        );
    }
}

fn map_type(file: &FileDescriptorProto, entry: &DescriptorProto) -> String {
    let of = |number: i32| {
        let field = entry.field.iter().find(|f| f.number() == number).expect("a map entry has key and value");
        field_type(file, entry, field)
    };
    format!("map<{},{}>", of(1), of(2))
}

fn field_type(file: &FileDescriptorProto, message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => {
            let name = local(file, field.type_name());
            name.strip_prefix(&format!("{}.", message.name())).unwrap_or(name).to_owned()
        }
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn compiled_enum(facts: &mut Facts, prefix: &str, entry: &EnumDescriptorProto) {
    let name = format!("{prefix}{}", entry.name());
    add(facts, format!("enum {name}"), String::new());
    for value in &entry.value {
        add(facts, format!("enum {name}.{}", value.name()), value.number().to_string());
    }
}

#[test]
fn the_compiled_interface_is_the_published_one() {
    let (published, compiled) = (published(), compiled());
    let mut differences = Vec::new();
    for name in published.keys().chain(compiled.keys().filter(|n| !published.contains_key(*n))) {
        let (expected, found) = (published.get(name), compiled.get(name));
        if expected != found {
            differences.push(format!("{name}: published {expected:?}, compiled {found:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(published.len() > 700, "the facts are not all there: {}", published.len());
}
