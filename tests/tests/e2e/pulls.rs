//! Images from a real registry: Debian's docker-registry on the loopback, over HTTP and HTTPS, under public names.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::build::{Build, Tar};
use crisp_tests::cri::{container_config, image, together};
use crisp_tests::images::Registry;
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use serde_json::json;
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "public_names_are_pulled_over_http", needs: &[Need::Registry], images: &[], run: over_http },
    Case {
        name: "public_names_are_pulled_over_https",
        needs: &[Need::Registry],
        images: &[],
        run: over_https,
    },
    Case {
        name: "every_layer_format_gives_the_same_files",
        needs: &[Need::Registry],
        images: &[],
        run: formats,
    },
    Case { name: "whiteouts_hide_what_lies_below", needs: &[Need::Registry], images: &[], run: whiteouts },
    Case {
        name: "a_list_gives_the_hosts_own_platform",
        needs: &[Need::Registry],
        images: &[],
        run: platforms,
    },
    Case { name: "the_images_user_is_resolved", needs: &[Need::Registry], images: &[], run: users },
    Case {
        name: "spoiled_content_of_a_registry_is_refused",
        needs: &[Need::Registry],
        images: &[],
        run: spoiled,
    },
    Case {
        name: "concurrent_pulls_and_removals_agree",
        needs: &[Need::Registry],
        images: &[],
        run: concurrent,
    },
    Case {
        name: "i14_an_image_that_comes_and_goes_gives_whole_containers_or_none",
        needs: &[Need::Registry],
        images: &[],
        run: coming_and_going,
    },
    Case {
        name: "i12_an_image_of_a_checkpoint_is_an_image_like_any_other",
        needs: &[],
        images: &["busybox"],
        run: checkpoint,
    },
];

fn remove(node: &Node, name: &str) -> Result<()> {
    node.cri().remove_image(cri::RemoveImageRequest { image: Some(image(name)) })?;
    ensure!(node.cri().image_id(name)?.is_none(), "{name} is still there");
    Ok(())
}

/// Pulls, runs one container of the image with `line` in a shell, returns what it says, removes all.
fn run_pulled(node: &Node, name: &str, line: &str) -> Result<String> {
    let id = node.cri().pull(name).with_context(|| format!("pull {name}"))?;
    ensure!(node.cri().image_id(name)?.as_ref() == Some(&id), "{name} has another id after the pull");
    let pod = node.run_pod("pulled")?;
    let container = node.launch(&pod, "c", name, &["sleep", "3600"])?;
    let said = node.cri().shell(&container, line);
    node.end_pod(&pod)?;
    remove(node, name)?;
    said
}

fn over_http(node: &mut Node) -> Result<()> {
    let _registry = Registry::start(&node.registry_hosts(), false)?;
    from_registry(node)
}

fn over_https(node: &mut Node) -> Result<()> {
    let _registry = Registry::start(&node.registry_hosts(), true)?;
    from_registry(node)
}

fn from_registry(node: &Node) -> Result<()> {
    let name = "docker.io/crisp/test-gzip:1";
    let first = node.cri().pull(name)?;
    ensure!(node.cri().pull(name)? == first, "pulled twice, two ids");
    let listed = node.cri().list_images(cri::ListImagesRequest::default())?.images;
    let found = listed.iter().find(|image| image.id == first).context("not in the list")?;
    ensure!(found.repo_tags == [name] && found.repo_digests.len() == 1, "{found:?}");
    // By digest: no tag, and exactly the digest that was asked for.
    let by_digest = found.repo_digests[0].clone();
    remove(node, name)?;
    ensure!(node.cri().pull(&by_digest)? == first);
    let request = cri::ImageStatusRequest { image: Some(image(&by_digest)), verbose: false };
    let found = node.cri().image_status(request)?.image.context("no image")?;
    ensure!(found.repo_tags.is_empty() && found.repo_digests == [by_digest.clone()], "{found:?}");
    remove(node, &by_digest)?;
    // Another public registry's name, and the command line.
    node.crisp(&["pull", "registry.k8s.io/e2e-test-images/busybox:1.29-2"])?.ok()?;
    let images = node.crisp(&["images"])?.ok()?;
    ensure!(images.contains("registry.k8s.io/e2e-test-images/busybox"), "{images}");
    remove(node, "registry.k8s.io/e2e-test-images/busybox:1.29-2")
}

/// All files of the root with mode, owner, size and name, in a stable order.
const LISTING: &str = "find / -xdev -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o -path /etc/hosts -prune \
     -o -path /etc/hostname -prune -o -path /etc/resolv.conf -prune -o -type f -print | sort | xargs ls -ln | cut -c 1-10,12-";

fn formats(node: &mut Node) -> Result<()> {
    let _registry = Registry::start(&node.registry_hosts(), false)?;
    let gzip = run_pulled(node, "crisp/test-gzip:1", LISTING)?;
    ensure!(gzip.lines().count() > 1, "{gzip}");
    for name in ["crisp/test-zstd:1", "crisp/test-plain:1"] {
        let other = run_pulled(node, name, LISTING)?;
        ensure!(other == gzip, "{name} gives other files:\n{other}\n{gzip}");
    }
    run_pulled(node, "crisp/test-docker:1", "true").map(|_| ())
}

fn whiteouts(node: &mut Node) -> Result<()> {
    let _registry = Registry::start(&node.registry_hosts(), false)?;
    let found = run_pulled(
        node,
        "crisp/test-whiteout:1",
        "find / -xdev -name '.wh.*'; echo --; ls -lR /data 2>/dev/null; true",
    )?;
    let (markers, _) = found.split_once("--").context("no separator")?;
    ensure!(markers.is_empty(), "markers are visible: {found}");
    Ok(())
}

fn platforms(node: &mut Node) -> Result<()> {
    let _registry = Registry::start(&node.registry_hosts(), false)?;
    run_pulled(node, "crisp/test-multiarch:1", "true")?;
    let message =
        node.cri().pull("crisp/test-other-arch:1").err().context("another platform was accepted")?;
    ensure!(message.message().contains("platform"), "{message:?}");
    ensure!(node.cri().image_id("crisp/test-other-arch:1")?.is_none());
    Ok(())
}

fn users(node: &mut Node) -> Result<()> {
    let _registry = Registry::start(&node.registry_hosts(), false)?;
    let said = run_pulled(node, "crisp/test-user:1", "id -u")?;
    ensure!(said.trim() != "0", "the image's user was ignored");
    Ok(())
}

fn spoiled(node: &mut Node) -> Result<()> {
    let before = node.snapshot()?;
    let _registry = Registry::start(&node.registry_hosts(), false)?;
    for name in ["docker.io/crisp/test-bad-layer:1", "docker.io/crisp/test-bad-diff-id:1"] {
        let message = node.cri().pull(name).err().with_context(|| format!("{name} was accepted"))?;
        ensure!(message.message().contains("sha256:"), "{message:?}");
        ensure!(node.cri().image_id(name)?.is_none(), "{name} is visible");
    }
    node.wait_for_return(&before).context("after refused pulls")
}

fn concurrent(node: &mut Node) -> Result<()> {
    let _registry = Registry::start(&node.registry_hosts(), false)?;
    let name = "docker.io/crisp/test-gzip:1";
    for _ in 0..3 {
        let id = together(node.cri(), |cri| cri.pull(name))?;
        let removal = || cri::RemoveImageRequest { image: Some(image(&id)) };
        let left = together(node.cri(), |cri| {
            cri.remove_image(removal())?;
            cri.image_id(name)
        })?;
        ensure!(left.is_none(), "still there after a removal");
    }
    // A container needs its image at Create, and says so.
    let pod = node.run_pod("gone")?;
    let refused = node.cri().create(&pod.id, &container_config("c", name, &["true"]), &pod.config);
    ensure!(refused.is_err());
    node.end_pod(&pod)
}

fn coming_and_going(node: &mut Node) -> Result<()> {
    let _registry = Registry::start(&node.registry_hosts(), false)?;
    let name = "docker.io/crisp/test-gzip:1";
    node.cri().pull(name)?;
    let pod = node.run_pod("coming")?;
    let done = AtomicBool::new(false);
    let made: Result<Vec<String>> = thread::scope(|scope| {
        let removals = scope.spawn(|| -> Result<usize> {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                remove(node, name)?;
                node.cri().pull(name)?;
                count += 1;
            }
            Ok(count)
        });
        let one = |number: usize| -> Result<Option<String>> {
            let config = container_config(&format!("c{number}"), name, &["sleep", "3600"]);
            match node.cri().create(&pod.id, &config, &pod.config) {
                Ok(id) => Ok(Some(id)),
                Err(refused) if refused.code() == Code::NotFound => Ok(None),
                Err(other) => Err(other.into()),
            }
        };
        let workers: Vec<_> = (0..5_usize)
            .map(|worker| {
                scope.spawn(move || (0..10).map(|i| one(worker * 10 + i)).collect::<Result<Vec<_>>>())
            })
            .collect();
        let made: Result<Vec<Vec<Option<String>>>> =
            workers.into_iter().map(|worker| worker.join().expect("no panic")).collect();
        done.store(true, Ordering::Relaxed);
        ensure!(removals.join().expect("no panic")? > 0, "the image was never removed meanwhile");
        Ok(made?.into_iter().flatten().flatten().collect())
    });
    let made = made?;
    remove(node, name)?;
    // Whatever was made stands on whole layers, though the image is gone.
    let mut seen = None;
    for id in &made {
        node.cri().start(id)?;
        let files =
            node.cri().shell(id, "cd / && find bin etc -xdev -type f | sort | xargs md5sum 2>/dev/null")?;
        ensure!(files.lines().count() > 1, "{files}");
        ensure!(seen.get_or_insert_with(|| files.clone()) == &files, "a container with other files: {files}");
    }
    node.end_pod(&pod)
}

/// What CRI-O takes for a checkpoint, by its annotation, with a configuration that wants the host.
fn checkpoint(node: &mut Node) -> Result<()> {
    let name = "docker.io/crisp/test-checkpoint:1";
    let hostile =
        r#"{"mounts":[{"destination":"/host","source":"/","type":"bind"}],"rootfsImageName":"busybox"}"#;
    let tar = Tar::default()
        .file("config.dump", hostile.as_bytes())
        .file("spec.dump", hostile.as_bytes())
        .symlink("container.log", "/etc/shadow")
        .dir("checkpoint");
    let labels = json!({"io.kubernetes.cri-o.annotations.checkpoint.name": "x", "org.criu.checkpoint.container.name": "x"});
    node.build_image(name, Build::on("busybox").layer(tar).set("Labels", labels))?;
    let before = node.cri().image_id("busybox")?;
    let pod = node.run_pod("checkpoint")?;
    let id = node.launch(&pod, "c", name, &["sleep", "3600"])?;
    let said = node.cri().shell(&id, "ls -d /host 2>&1; cat /proc/mounts; cat /config.dump")?;
    ensure!(said.contains("/host: No such file") && said.contains("rootfsImageName"), "{said}");
    let status = node.cri().container(&id)?;
    ensure!(status.mounts.is_empty(), "{:?}", status.mounts);
    ensure!(node.cri().image_id("busybox")? == before, "another image has the name now");
    node.end_pod(&pod)?;
    remove(node, name)
}
