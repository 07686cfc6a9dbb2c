//! Images from a real registry: Debian's docker-registry on the loopback, over HTTP and HTTPS, under public names.

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, image, together};
use crisp_tests::images::Registry;
use crisp_tests::node::Node;
use crisp_tests::place::Need;

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
