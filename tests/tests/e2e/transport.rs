//! What is no proper call at all: spoilt messages, broken HTTP/2, connections that do nothing, messages too large.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, image, refused};
use crisp_tests::grpc::{Caller, methods};
use crisp_tests::http2::{self, Connection, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM};
use crisp_tests::node::Node;
use crisp_tests::place;
use crisp_tests::random::Random;
use crisp_tests::untouched;
use prost::Message;
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "c15_spoilt_messages_get_a_status", needs: &[], images: &["busybox"], run: spoilt },
    Case { name: "c15_what_is_missing_or_unknown_is_named", needs: &[], images: &["busybox"], run: missing },
    Case { name: "c15_broken_http2_ends_its_own_connection", needs: &[], images: &["busybox"], run: broken },
    Case {
        name: "c15_streams_by_the_thousand_hold_nobody_up",
        needs: &[],
        images: &["busybox"],
        run: streams,
    },
    Case {
        name: "c15_connections_that_do_nothing_hold_nobody_up",
        needs: &[],
        images: &["busybox"],
        run: idle,
    },
    Case { name: "c15_a_compressed_bomb_is_not_unpacked", needs: &[], images: &["busybox"], run: bomb },
    Case {
        name: "c16_a_message_over_the_cap_changes_nothing",
        needs: &[],
        images: &["busybox"],
        run: oversize,
    },
    Case {
        name: "c16_an_answer_over_the_cap_comes_in_pieces",
        needs: &[],
        images: &["busybox"],
        run: large_answer,
    },
];

/// Spoilt messages for each method.
const SPOILT_ROUNDS: usize = 30;
/// Broken connections.
const BROKEN_ROUNDS: usize = 60;

fn socket(node: &Node) -> PathBuf {
    node.endpoint().trim_start_matches("unix://").into()
}

/// Messages as they should be, for the methods that would do something. None names anything that is there but the
/// victim's kind of image, and none holds a path of the host that something could be made at.
fn proper(name: &str, node: &Node) -> Vec<u8> {
    let missing = "NO-SUCH-OBJECT".to_owned();
    let mut pod = node.pod_config("spoilt");
    pod.log_directory = String::new();
    match name {
        "RunPodSandbox" => {
            cri::RunPodSandboxRequest { config: Some(pod), ..Default::default() }.encode_to_vec()
        }
        "CreateContainer" => cri::CreateContainerRequest {
            pod_sandbox_id: missing,
            config: Some(container_config("C", "NO-SUCH-IMAGE", &["TRUE"])),
            sandbox_config: Some(pod),
        }
        .encode_to_vec(),
        "ExecSync" => {
            cri::ExecSyncRequest { container_id: missing, cmd: vec!["TRUE".to_owned()], timeout: 1 }
                .encode_to_vec()
        }
        "PullImage" | "RemoveImage" | "ImageStatus" => {
            cri::PullImageRequest { image: Some(image("NO-SUCH-IMAGE")), ..Default::default() }
                .encode_to_vec()
        }
        // Most take an id, or a filter, as their first field.
        _ => cri::StopContainerRequest { container_id: missing, timeout: 1 }.encode_to_vec(),
    }
}

/// Removes what a spoilt message has made after all.
fn remove_made(node: &Node) -> Result<()> {
    for pod in node.cri().pods()? {
        if pod.metadata.as_ref().is_none_or(|metadata| metadata.name != "victim") {
            node.cri().remove_pod(&pod.id)?;
        }
    }
    Ok(())
}

fn spoilt(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let mut random = Random::announced("c15_spoilt_messages_get_a_status");
        let caller = Caller::new(&socket(node))?;
        for method in methods()? {
            let proper = proper(&method.name, node);
            for _ in 0..place::rounds(SPOILT_ROUNDS, SPOILT_ROUNDS) {
                let length = random.below(64);
                let message = if random.below(4) == 0 { random.bytes(length) } else { random.spoil(&proper) };
                // Only the stream of events has no end of its own.
                let limit = (method.name == "GetContainerEvents").then_some(Duration::from_millis(20));
                let reply = caller.call(&method.path, message.clone(), limit);
                let answered = match &reply {
                    Ok(_) => true,
                    Err(status) => !matches!(status.code(), Code::Ok | Code::Unavailable) || limit.is_some(),
                };
                ensure!(answered, "seed {}: {} of {message:?}: {reply:?}", random.seed, method.name);
            }
        }
        remove_made(node)
    })
}

fn missing(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let caller = Caller::new(&socket(node))?;
        let empty = |path: &str| caller.call(path, Vec::new(), None);
        refused(empty("/runtime.v1.RuntimeService/RunPodSandbox"), Code::InvalidArgument)?;
        refused(empty("/runtime.v1.RuntimeService/CreateContainer"), Code::InvalidArgument)?;
        refused(empty("/runtime.v1.ImageService/PullImage"), Code::InvalidArgument)?;
        for path in
            ["/runtime.v1alpha2.RuntimeService/Version", "/runtime.v1.RuntimeService/NoSuch", "/x", "/"]
        {
            refused(empty(path), Code::Unimplemented).with_context(|| path.to_owned())?;
        }
        // Fields of a later version are skipped.
        let mut version = cri::VersionRequest::default().encode_to_vec();
        version.extend([0xa2, 0x06, 3, 1, 2, 3]);
        ensure!(caller.call("/runtime.v1.RuntimeService/Version", version, None)?.len() == 1);

        let mut config = node.pod_config("unknown");
        config.metadata = None;
        refused(node.cri().run_pod(&config), Code::InvalidArgument)?;
        for field in ["network", "pid", "ipc"] {
            let mut config = node.pod_config("unknown");
            let options = cri::NamespaceOption::default();
            let options = match field {
                "network" => cri::NamespaceOption { network: 99, ..options },
                "pid" => cri::NamespaceOption { pid: -1, ..options },
                _ => cri::NamespaceOption { ipc: i32::MAX, ..options },
            };
            let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
            security.context("security context")?.namespace_options = Some(options);
            let message = refused(node.cri().run_pod(&config), Code::InvalidArgument)?;
            ensure!(message.contains(field), "{message}");
        }
        let pod = node.run_pod("unknown")?;
        let plain = || container_config("c", "busybox", &["true"]);
        let configs = [
            ("metadata", cri::ContainerConfig { metadata: None, ..plain() }),
            ("image", cri::ContainerConfig { image: None, ..plain() }),
            ("stop_signal", cri::ContainerConfig { stop_signal: 4711, ..plain() }),
        ];
        for (field, config) in configs {
            let message = refused(node.cri().create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
            ensure!(message.contains(field), "{message}");
        }
        node.end_pod(&pod)
    })
}

fn broken(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let mut random = Random::announced("c15_broken_http2_ends_its_own_connection");
        let list = "/runtime.v1.RuntimeService/ListContainers";
        for round in 0..place::rounds(BROKEN_ROUNDS, BROKEN_ROUNDS) {
            let mut connection = Connection::silent(&socket(node))?;
            let mut bytes = http2::PREFACE.to_vec();
            if random.below(8) == 0 {
                bytes = random.spoil(&bytes);
            }
            bytes.extend(http2::frame(http2::SETTINGS, 0, 0, &[]));
            for stream in 0..1 + random.below(6) as u32 {
                let stream = 2 * stream + 1;
                let mut more = http2::frame(
                    HEADERS,
                    END_HEADERS,
                    stream,
                    &http2::call_headers(list, "application/grpc"),
                );
                more.extend(http2::frame(DATA, END_STREAM, stream, &http2::message(&[])));
                let (kind, flags) = (random.number() as u8 % 12, random.number() as u8);
                let length = random.below(40);
                more.extend(http2::frame(kind, flags, random.number() as u32 % 16, &random.bytes(length)));
                bytes.extend(if random.below(2) == 0 { random.spoil(&more) } else { more });
            }
            // The server may close it before everything is said, and has to close it when we have said our last.
            let _ = connection.send(&bytes);
            let _ = connection.half_close();
            connection.wait_for(|_| false).with_context(|| format!("seed {}, round {round}", random.seed))?;
        }
        // Other contents than gRPC's, and other methods than POST.
        for content_type in ["application/json", "", "text/html", "application/grpc+json"] {
            let mut connection = Connection::open(&socket(node))?;
            let head = http2::call_headers(list, content_type);
            connection.send(&http2::frame(HEADERS, END_HEADERS, 1, &head))?;
            connection.send(&http2::frame(DATA, END_STREAM, 1, &http2::message(&[])))?;
            let ended = connection.wait_for(|frame| frame.stream == 1)?;
            ensure!(ended.is_some(), "{content_type:?}: no answer");
        }
        let mut connection = Connection::silent(&socket(node))?;
        connection.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        connection.half_close()?;
        connection.wait_for(|_| false).or_else(|error| {
            // An answer in HTTP/1.1 is no frame.
            if error.to_string().contains("a frame of") { Ok(None) } else { Err(error) }
        })?;
        Ok(())
    })
}

fn streams(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        // CVE-2023-44487: opened and reset in one breath.
        let list = http2::call_headers("/runtime.v1.RuntimeService/ListContainers", "application/grpc");
        let events = http2::call_headers("/runtime.v1.RuntimeService/GetContainerEvents", "application/grpc");
        for (head, reset) in [(&list, true), (&events, false)] {
            let mut connection = Connection::open(&socket(node))?;
            let reader = connection.read_aside()?;
            for number in 0..10_000u32 {
                let stream = 2 * number + 1;
                let mut bytes = http2::frame(HEADERS, END_HEADERS, stream, head);
                bytes.extend(http2::frame(DATA, END_STREAM, stream, &http2::message(&[])));
                if reset {
                    bytes.extend(http2::frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
                }
                // A server that has had enough of it closes the connection.
                if connection.send(&bytes).is_err() {
                    break;
                }
                if number % 1000 == 0 {
                    node.cri().version(cri::VersionRequest::default()).context("another client")?;
                }
            }
            drop(connection);
            reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        }
        Ok(())
    })
}

fn idle(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let mut connections = Vec::new();
        let head = http2::call_headers("/runtime.v1.RuntimeService/RunPodSandbox", "application/grpc");
        for number in 0..200 {
            let mut connection = Connection::silent(&socket(node))?;
            let bytes = match number % 5 {
                0 => Vec::new(),
                1 => http2::PREFACE[..10].to_vec(),
                2 => http2::PREFACE.to_vec(),
                // Half a header, and a message that never ends.
                3 => [http2::PREFACE, &http2::frame(HEADERS, 0, 1, &head[..20])].concat(),
                _ => [
                    http2::PREFACE,
                    &http2::frame(http2::SETTINGS, 0, 0, &[]),
                    &http2::frame(HEADERS, END_HEADERS, 1, &head),
                    &http2::frame(DATA, 0, 1, &[0, 0, 0xff, 0xff, 0xff, 1, 2, 3]),
                ]
                .concat(),
            };
            connection.send(&bytes)?;
            connections.push(connection);
        }
        let pod = node.run_pod("beside")?;
        let id = node.launch(&pod, "c", "busybox", &["true"])?;
        node.wait_for_exit(&id)?;
        node.end_pod(&pod)?;
        // Half of them say that they are done, in the middle of what they were saying.
        for connection in connections.iter_mut().step_by(2) {
            connection.half_close()?;
            connection.wait_for(|_| false)?;
        }
        ensure!(node.cri().pods()?.len() == 1, "a message that never ended made a sandbox");
        Ok(())
    })
}

fn bomb(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let caller = Caller::new(&socket(node))?;
        let message = vec![0; 256 << 20];
        let status = caller.call_compressed("/runtime.v1.RuntimeService/Version", message).err();
        let status = status.context("a compressed message was taken")?;
        ensure!(status.code() == Code::Unimplemented, "{status:?}");
        Ok(())
    })
}

/// A cap of the daemon's or of its transport's.
fn is_too_large(status: &tonic::Status) -> bool {
    matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange)
}

fn oversize(node: &mut Node) -> Result<()> {
    let before = node.snapshot()?;
    let sized = |bytes: usize| {
        let mut config = node.pod_config("sized");
        config.annotations.insert("big".to_owned(), "x".repeat(bytes));
        config
    };
    // Over the cap of 16 MiB, and just below it: the first is not read, the second is more than an object may hold.
    for bytes in [(16 << 20) + 1, 64 << 20] {
        let status = node.cri().run_pod(&sized(bytes)).err().context("taken")?;
        ensure!(is_too_large(&status), "{status:?}");
    }
    for bytes in [(16 << 20) - (8 << 10), (1 << 20) + 1] {
        let message = refused(node.cri().run_pod(&sized(bytes)), Code::InvalidArgument)?;
        ensure!(message.contains("annotations"), "{message}");
    }
    ensure!(node.cri().pods()?.is_empty());
    node.wait_for_return(&before)?;
    let pod = node.run_pod_as(sized(1 << 19))?;
    ensure!(node.cri().pod(&pod.id)?.annotations == pod.config.annotations);
    let mut config = container_config("c", "busybox", &["true"]);
    config.labels.insert("big".to_owned(), "x".repeat((1 << 20) + 1));
    let message = refused(node.cri().create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
    ensure!(message.contains("labels"), "{message}");
    node.end_pod(&pod)
}

fn large_answer(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("large")?;
    let mut made = Vec::new();
    for number in 0..18 {
        let mut config = container_config(&format!("c{number}"), "busybox", &["true"]);
        config.annotations.insert("big".to_owned(), "x".repeat((1 << 20) - 1024));
        made.push(node.cri().create(&pod.id, &config, &pod.config)?);
    }
    let status = node.cri().containers().err().context("an answer over the cap was sent")?;
    ensure!(is_too_large(&status), "{status:?}");
    // Each alone, a part of them, and all of them in pieces.
    for id in &made {
        ensure!(node.cri().container(id)?.id == *id);
    }
    let filter = cri::ContainerFilter { id: made[0].clone(), ..Default::default() };
    let one = node.cri().list_containers(cri::ListContainersRequest { filter: Some(filter) })?.containers;
    ensure!(one.len() == 1);
    let pieces = node.cri().stream_containers(cri::StreamContainersRequest::default())?;
    let mut listed: Vec<_> =
        pieces.into_iter().flat_map(|piece| piece.containers).map(|one| one.id).collect();
    listed.sort();
    made.sort();
    ensure!(listed == made, "{} of {} containers", listed.len(), made.len());
    node.end_pod(&pod)
}
