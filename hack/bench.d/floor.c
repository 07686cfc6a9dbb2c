// What the kernel itself charges for a pod with one container: a bare program, no daemon, no protocol, no checks.
//
// Each round makes and pins a network, IPC and UTS namespace, connects the network namespace to a bridge with one
// IPv4 and one IPv6 address and default routes, makes an overlay root, clones a process into PID, mount and cgroup
// namespaces, gives it /proc, /dev and /sys, and executes a static program up to the first byte that it writes.
// One line of output a round: nanoseconds of each phase. Taking the round apart again is not measured.
//
// usage: floor ROUNDS BRIDGE LOWER WORK PINS PROGRAM
//   LOWER    folder with PROGRAM and empty folders proc, sys, dev
//   WORK     empty folder on a file system that can hold an overlay's upper directory
//   PINS     empty folder for the pinned namespaces
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/mount.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// <sys/mount.h> and <linux/mount.h> clash in older C libraries; these few come from the latter's side.
int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
int umount2(const char *target, int flags);
enum { BIND = 4096, REC = 16384, SLAVE = 1 << 19, RDONLY = 1, NOSUID = 2, NODEV = 4, NOEXEC = 8, DETACH = 2 };

static const char *stage = "start";

static void check(long result, const char *what) {
  if (result >= 0) return;
  fprintf(stderr, "floor: %s: %s: %s\n", stage, what, strerror(errno));
  _exit(1);
}

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// ---- netlink: one buffer of requests, sent at once, then one acknowledgement for each ----

static struct {
  char bytes[8192];
  size_t length;
  int count;
} batch;

static struct nlmsghdr *begin(int type, int flags, const void *body, size_t size) {
  struct nlmsghdr *h = (struct nlmsghdr *)(batch.bytes + batch.length);
  memset(h, 0, NLMSG_SPACE(size));
  h->nlmsg_len = NLMSG_LENGTH(size);
  h->nlmsg_type = type;
  h->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
  h->nlmsg_seq = ++batch.count;
  memcpy(NLMSG_DATA(h), body, size);
  return h;
}

static struct rtattr *attr(struct nlmsghdr *h, int type, const void *data, size_t size) {
  struct rtattr *a = (struct rtattr *)((char *)h + NLMSG_ALIGN(h->nlmsg_len));
  a->rta_type = type;
  a->rta_len = RTA_LENGTH(size);
  if (size) memcpy(RTA_DATA(a), data, size);
  h->nlmsg_len = NLMSG_ALIGN(h->nlmsg_len) + RTA_ALIGN(a->rta_len);
  return a;
}

static void close_nest(struct nlmsghdr *h, struct rtattr *a) { a->rta_len = (char *)h + h->nlmsg_len - (char *)a; }

static void end(struct nlmsghdr *h) { batch.length += NLMSG_ALIGN(h->nlmsg_len); }

static void flush(int sock) {
  char reply[8192];
  check(send(sock, batch.bytes, batch.length, 0), "netlink send");
  for (int acks = 0; acks < batch.count;) {
    ssize_t n = recv(sock, reply, sizeof reply, 0);
    check(n, "netlink receive");
    for (struct nlmsghdr *h = (struct nlmsghdr *)reply; NLMSG_OK(h, n); h = NLMSG_NEXT(h, n)) {
      if (h->nlmsg_type != NLMSG_ERROR) continue;
      int error = ((struct nlmsgerr *)NLMSG_DATA(h))->error;
      if (error) {
        fprintf(stderr, "floor: %s: netlink request %u: %s\n", stage, h->nlmsg_seq, strerror(-error));
        _exit(1);
      }
      acks++;
    }
  }
  batch.length = 0;
  batch.count = 0;
}

static void link_up(int index) {
  struct ifinfomsg m = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
  end(begin(RTM_NEWLINK, 0, &m, sizeof m));
}

static void address(int index, int family, const void *bytes, int prefix) {
  struct ifaddrmsg m = {.ifa_family = family, .ifa_prefixlen = prefix, .ifa_index = index, .ifa_flags = IFA_F_NODAD};
  size_t size = family == AF_INET ? 4 : 16;
  struct nlmsghdr *h = begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &m, sizeof m);
  attr(h, IFA_LOCAL, bytes, size);
  attr(h, IFA_ADDRESS, bytes, size);
  end(h);
}

static void default_route(int index, int family, const void *gateway) {
  struct rtmsg m = {.rtm_family = family, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_STATIC,
                    .rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST};
  struct nlmsghdr *h = begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &m, sizeof m);
  attr(h, RTA_GATEWAY, gateway, family == AF_INET ? 4 : 16);
  attr(h, RTA_OIF, &index, sizeof index);
  end(h);
}

static void veth(int host_sock, int bridge, const char *host_name, int pod_ns) {
  struct ifinfomsg m = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
  struct nlmsghdr *h = begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &m, sizeof m);
  attr(h, IFLA_IFNAME, host_name, strlen(host_name) + 1);
  attr(h, IFLA_MASTER, &bridge, sizeof bridge);
  struct rtattr *info = attr(h, IFLA_LINKINFO, NULL, 0);
  attr(h, IFLA_INFO_KIND, "veth", 4);
  struct rtattr *data = attr(h, IFLA_INFO_DATA, NULL, 0);
  struct ifinfomsg peer = {.ifi_index = 2};
  struct rtattr *other = attr(h, VETH_INFO_PEER, &peer, sizeof peer);
  attr(h, IFLA_IFNAME, "eth0", 5);
  attr(h, IFLA_NET_NS_FD, &pod_ns, sizeof pod_ns);
  close_nest(h, other);
  close_nest(h, data);
  close_nest(h, info);
  end(h);
  flush(host_sock);
}

static int route_socket(void) {
  int sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  check(sock, "netlink socket");
  return sock;
}

static int make_bridge(int sock, const char *name) {
  struct ifinfomsg m = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
  struct nlmsghdr *h = begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &m, sizeof m);
  attr(h, IFLA_IFNAME, name, strlen(name) + 1);
  struct rtattr *info = attr(h, IFLA_LINKINFO, NULL, 0);
  attr(h, IFLA_INFO_KIND, "bridge", 6);
  close_nest(h, info);
  end(h);
  flush(sock);
  int index = if_nametoindex(name);
  check(index ? 0 : -1, "bridge index");
  return index;
}

static void delete_link(int sock, const char *name) {
  struct ifinfomsg m = {0};
  struct nlmsghdr *h = begin(RTM_DELLINK, 0, &m, sizeof m);
  attr(h, IFLA_IFNAME, name, strlen(name) + 1);
  end(h);
  flush(sock);
}

// ---- namespaces and mounts ----

static const char *const pinned[] = {"net", "ipc", "uts"};

static void pin_path(char *path, size_t size, const char *pins, int i) { snprintf(path, size, "%s/%s", pins, pinned[i]); }

static void pin_all(const char *pins) {
  for (int i = 0; i < 3; i++) {
    char path[4096], source[64];
    pin_path(path, sizeof path, pins, i);
    snprintf(source, sizeof source, "/proc/self/ns/%s", pinned[i]);
    int fd = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
    check(fd, path);
    close(fd);
    check(mount(source, path, NULL, BIND, NULL), path);
  }
}

static void unpin_all(const char *pins) {
  for (int i = 0; i < 3; i++) {
    char path[4096];
    pin_path(path, sizeof path, pins, i);
    check(umount2(path, DETACH), path);
    check(unlink(path), path);
  }
}

static int overlay(const char *lower, const char *work, int round) {
  char upper[4096], workdir[4096];
  snprintf(upper, sizeof upper, "%s/%d", work, round);
  check(mkdir(upper, 0700), upper);
  snprintf(workdir, sizeof workdir, "%s/%d/work", work, round);
  snprintf(upper, sizeof upper, "%s/%d/upper", work, round);
  check(mkdir(upper, 0755), upper);
  check(mkdir(workdir, 0700), workdir);
  int fs = syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC);
  check(fs, "fsopen overlay");
  check(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "lowerdir", lower, 0), "lowerdir");
  check(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "upperdir", upper, 0), "upperdir");
  check(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "workdir", workdir, 0), "workdir");
  check(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "overlay create");
  int tree = syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
  check(tree, "fsmount overlay");
  close(fs);
  return tree;
}

static void devices(void) {
  static const struct { const char *name; int major, minor; } nodes[] = {
      {"dev/null", 1, 3}, {"dev/zero", 1, 5}, {"dev/full", 1, 7}, {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0}};
  check(mount("tmpfs", "dev", "tmpfs", NOSUID, "mode=755,size=65536k"), "mount dev");
  for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++)
    check(mknod(nodes[i].name, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)), nodes[i].name);
  check(mkdir("dev/pts", 0755), "mkdir dev/pts");
  check(mount("devpts", "dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=0620"), "mount dev/pts");
  check(mkdir("dev/shm", 01777), "mkdir dev/shm");
  check(mount("shm", "dev/shm", "tmpfs", NOSUID | NODEV | NOEXEC, "mode=1777,size=65536k"), "mount dev/shm");
}

static void contained(int root, const char *work, const char *program, int out) {
  stage = "container";
  check(mount(NULL, "/", NULL, REC | SLAVE, NULL), "make / slave");
  check(syscall(SYS_move_mount, root, "", AT_FDCWD, work, MOVE_MOUNT_F_EMPTY_PATH), "move_mount");
  check(chdir(work), "chdir root");
  check(mount("proc", "proc", "proc", NOSUID | NODEV | NOEXEC, NULL), "mount proc");
  devices();
  check(mount("sysfs", "sys", "sysfs", NOSUID | NODEV | NOEXEC | RDONLY, NULL), "mount sys");
  check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
  check(umount2(".", DETACH), "detach old root");
  check(chdir("/"), "chdir /");
  check(dup2(out, 1), "dup2");
  char *const argv[] = {(char *)program, NULL};
  char *const envp[] = {NULL};
  execve(program, argv, envp);
  check(-1, program);
}

struct host {
  int net, ipc, uts, sock, bridge;
};

static void round_trip(const struct host *host, int round, char *const *arg) {
  const char *lower = arg[0], *work = arg[1], *pins = arg[2], *program = arg[3];
  char name[IFNAMSIZ], byte;
  snprintf(name, sizeof name, "floor%d", round);
  int out[2], pidfd = -1;
  check(pipe2(out, O_CLOEXEC), "pipe");

  int64_t start = now();
  stage = "namespaces";
  check(unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS), "unshare");
  check(sethostname("floor", 5), "sethostname");
  int64_t made = now();
  pin_all(pins);
  int64_t pinned_at = now();

  stage = "network";
  int pod_ns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  check(pod_ns, "open netns");
  veth(host->sock, host->bridge, name, pod_ns);
  int sock = route_socket();
  unsigned char v4[4] = {10, 250, round >> 8 & 255, (round & 255) | 0}, v4gw[4] = {10, 250, 255, 254};
  unsigned char v6[16] = {0xfd, 0, 0, 0xfa}, v6gw[16] = {0xfd, 0, 0, 0xfa};
  v6[14] = round >> 8, v6[15] = round, v6gw[14] = 0xff, v6gw[15] = 0xfe;
  link_up(1);
  link_up(2);
  address(2, AF_INET, v4, 16);
  address(2, AF_INET6, v6, 64);
  default_route(2, AF_INET, v4gw);
  default_route(2, AF_INET6, v6gw);
  flush(sock);
  int64_t connected = now();

  stage = "overlay";
  int root = overlay(lower, work, round);
  int64_t rooted = now();

  stage = "clone";
  struct clone_args args = {.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_PIDFD,
                            .pidfd = (uintptr_t)&pidfd, .exit_signal = SIGCHLD};
  long pid = syscall(SYS_clone3, &args, sizeof args);
  check(pid, "clone3");
  if (pid == 0) contained(root, work, program, out[1]);
  close(out[1]);
  if (read(out[0], &byte, 1) != 1) { fprintf(stderr, "floor: the program said nothing\n"); _exit(1); }
  int64_t spoke = now();

  printf("%lld %lld %lld %lld %lld %lld\n", (long long)(made - start), (long long)(pinned_at - made),
         (long long)(connected - pinned_at), (long long)(rooted - connected), (long long)(spoke - rooted),
         (long long)(spoke - start));

  stage = "taking apart";
  check(kill(pid, SIGKILL), "kill");
  check(waitpid(pid, NULL, 0), "wait");
  close(pidfd), close(root), close(out[0]), close(sock), close(pod_ns);
  check(setns(host->net, CLONE_NEWNET), "setns net");
  check(setns(host->ipc, CLONE_NEWIPC), "setns ipc");
  check(setns(host->uts, CLONE_NEWUTS), "setns uts");
  delete_link(host->sock, name);
  unpin_all(pins);
}

int main(int argc, char **argv) {
  if (argc != 7) {
    fprintf(stderr, "usage: floor ROUNDS BRIDGE LOWER WORK PINS PROGRAM\n");
    return 2;
  }
  int rounds = atoi(argv[1]);
  struct host host = {.net = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), .ipc = open("/proc/self/ns/ipc", O_RDONLY | O_CLOEXEC),
                      .uts = open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC), .sock = route_socket()};
  check(host.net < 0 || host.ipc < 0 || host.uts < 0 ? -1 : 0, "open own namespaces");
  host.bridge = make_bridge(host.sock, argv[2]);
  unsigned char v4[4] = {10, 250, 255, 254}, v6[16] = {0xfd, 0, 0, 0xfa};
  v6[14] = 0xff, v6[15] = 0xfe;
  address(host.bridge, AF_INET, v4, 16);
  address(host.bridge, AF_INET6, v6, 64);
  flush(host.sock);
  for (int round = 1; round <= rounds; round++) round_trip(&host, round, argv + 3);
  delete_link(host.sock, argv[2]);
  return 0;
}
