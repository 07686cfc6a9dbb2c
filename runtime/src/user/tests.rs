use super::*;
use std::os::fd::AsFd;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
web:x:1000:50000::/home/web:/bin/sh
# a comment, and broken lines
broken:x:12
wrap:x:4294967296:0::/:/bin/sh
2000:x:0:0::/:/bin/sh
odd:x:7:7::relative:/bin/sh
";
const GROUP: &str = "root:x:0:\nweb:x:50000:\nstaff:x:1234:root,web\nwheel:x:10:web\n";

fn root_with(passwd: &str, group: &str) -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
    std::fs::write(dir.path().join("etc/group"), group).unwrap();
    let root = Root::open(dir.path()).unwrap();
    (dir, root)
}

fn spec(user: Who) -> UserSpec {
    UserSpec { user, group: None, supplemental: Vec::new(), policy: GroupPolicy::Merge }
}

fn ask(user: Who) -> Result<Identity, UserError> {
    let (_dir, root) = root_with(PASSWD, GROUP);
    resolve(root.as_fd(), &spec(user))
}

fn image(text: &str) -> Result<Identity, UserError> {
    ask(Who::Image(text.to_owned()))
}

#[test]
fn users_are_found_by_name_and_number() {
    let expected =
        Identity { uid: 1000, gid: 50000, groups: vec![10, 1234, 50000], home: "/home/web".into() };
    for who in [Who::Uid(1000), Who::Name("web".into()), Who::Name("1000".into()), Who::Image("web".into())] {
        assert_eq!(ask(who).unwrap(), expected);
    }
    let unknown = ask(Who::Uid(4711)).unwrap();
    assert_eq!(unknown, Identity { uid: 4711, gid: 0, groups: vec![0], home: "/".into() });
}

#[test]
fn an_image_names_user_and_group() {
    assert_eq!(image("").unwrap().uid, 0);
    let both = image("web:wheel").unwrap();
    assert_eq!((both.uid, both.gid, both.groups), (1000, 10, vec![10, 1234]));
    assert_eq!(image("4711:99").unwrap().gid, 99);
    assert!(matches!(image("nobody-here").unwrap_err(), UserError::UnknownUser { .. }));
    assert!(matches!(image("web:nogroup").unwrap_err(), UserError::UnknownGroup { .. }));
}

#[test]
fn what_is_not_understood_is_refused_and_never_root() {
    let bad =
        ["1000:", ":100", "0x0", " 0", "+0", "-1", "1000:1000:1", "4294967296", "4294967296:0", "2147483648"];
    for text in bad.into_iter().chain(["٣", "web\n", "we b", "web:0x1", "$", ":"]) {
        assert!(matches!(image(text), Err(UserError::Invalid { .. })), "{text:?}");
    }
    assert!(ask(Who::Uid(u32::MAX)).is_err());
    assert!(ask(Who::Name(String::new())).is_err());
    // A uid in the file that would wrap to 0 does not exist.
    assert!(matches!(image("wrap").unwrap_err(), UserError::UnknownUser { .. }));
}

#[test]
fn a_number_is_never_a_name() {
    let user = ask(Who::Uid(2000)).unwrap();
    assert_eq!((user.uid, user.gid), (2000, 0));
    assert_eq!(image("2000").unwrap().uid, 2000);
}

#[test]
fn policies_put_groups_together() {
    let (_dir, root) = root_with(PASSWD, GROUP);
    let mut spec = UserSpec { supplemental: vec![1234, 5], group: Some(77), ..spec(Who::Uid(1000)) };
    let merged = resolve(root.as_fd(), &spec).unwrap();
    assert_eq!((merged.gid, merged.groups), (77, vec![5, 10, 77, 1234]));
    spec.policy = GroupPolicy::Strict;
    assert_eq!(resolve(root.as_fd(), &spec).unwrap().groups, [5, 77, 1234]);
    spec.supplemental = vec![u32::MAX];
    assert!(resolve(root.as_fd(), &spec).is_err());
}

#[test]
fn files_are_read_inside_the_root_and_within_bounds() {
    let (dir, root) = root_with("", "");
    let passwd = dir.path().join("etc/passwd");
    std::fs::remove_file(&passwd).unwrap();
    // Missing: numbers do, names do not.
    assert_eq!(resolve(root.as_fd(), &spec(Who::Uid(5))).unwrap().uid, 5);
    assert!(resolve(root.as_fd(), &spec(Who::Name("root".into()))).is_err());
    // A link to the host's file finds nothing.
    std::os::unix::fs::symlink("/etc/passwd", &passwd).unwrap();
    let error = resolve(root.as_fd(), &spec(Who::Uid(5))).unwrap_err();
    assert!(error.to_string().starts_with("look up user: "), "{error}");
    std::fs::remove_file(&passwd).unwrap();
    std::fs::File::create(&passwd).unwrap().set_len(8 << 30).unwrap();
    assert!(matches!(resolve(root.as_fd(), &spec(Who::Uid(5))), Err(UserError::File(_))));
    std::fs::remove_file(&passwd).unwrap();
    nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(resolve(root.as_fd(), &spec(Who::Uid(5))), Err(UserError::File(_))));
}

#[test]
fn a_home_that_is_no_plain_path_is_replaced() {
    assert_eq!(ask(Who::Uid(7)).unwrap().home, "/");
    let (_dir, root) = root_with("evil:x:9:9::/root\rx:/bin/sh\n", "");
    assert_eq!(resolve(root.as_fd(), &spec(Who::Uid(9))).unwrap().home, "/");
}
