/*
 * What a process may do, by trying: devices, sockets, and system calls with arguments that no kernel accepts, so that the
 * error tells a filter's refusal from the kernel's own.
 */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *opened(const char *path, int flags) {
  int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return error_name(errno);
  close(fd);
  return "yes";
}

static void try_devices(void) {
  static const char *nodes[] = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console", "kmsg", "mem",
                                "net/tun", "probe-kmsg", "probe/zero"};
  static const struct { mode_t kind; unsigned major, minor; } made[] = {
    {S_IFCHR, 1, 3}, {S_IFCHR, 1, 1}, {S_IFCHR, 1, 11}, {S_IFCHR, 5, 1}, {S_IFCHR, 10, 200}, {S_IFCHR, 4, 64},
    {S_IFBLK, 254, 0}};
  char path[64], key[64];
  for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++) {
    snprintf(path, sizeof path, "/dev/%s", nodes[i]);
    say("open", path, "read %s, write %s", opened(path, O_RDONLY), opened(path, O_WRONLY));
  }
  for (unsigned i = 0; i < sizeof made / sizeof *made; i++) {
    snprintf(path, sizeof path, "/dev/.probe");
    snprintf(key, sizeof key, "%s %u:%u", made[i].kind == S_IFCHR ? "char" : "block", made[i].major, made[i].minor);
    if (mknod(path, made[i].kind | 0600, makedev(made[i].major, made[i].minor))) {
      say("mknod", key, "%s", error_name(errno));
      continue;
    }
    say("mknod", key, "made, read %s, write %s", opened(path, O_RDONLY), opened(path, O_WRONLY));
    unlink(path);
  }
}

static void try_sockets(void) {
  static const struct { const char *name; int family, type, protocol; } sockets[] = {
    {"inet stream", AF_INET, SOCK_STREAM, 0}, {"inet6 stream", AF_INET6, SOCK_STREAM, 0},
    {"unix stream", AF_UNIX, SOCK_STREAM, 0}, {"ping", AF_INET, SOCK_DGRAM, 1}, {"raw icmp", AF_INET, SOCK_RAW, 1},
    {"packet", AF_PACKET, SOCK_RAW, 0}, {"netlink route", AF_NETLINK, SOCK_RAW, 0},
    {"netlink audit", AF_NETLINK, SOCK_RAW, 9}, {"alg", 38, SOCK_SEQPACKET, 0}, {"vsock", 40, SOCK_STREAM, 0},
    {"bluetooth", 31, SOCK_RAW, 0}, {"can", 29, SOCK_RAW, 1}, {"xdp", 44, SOCK_RAW, 0}, {"key", 15, SOCK_RAW, 2}};
  for (unsigned i = 0; i < sizeof sockets / sizeof *sockets; i++) {
    int fd = socket(sockets[i].family, sockets[i].type | SOCK_CLOEXEC, sockets[i].protocol);
    say("socket", sockets[i].name, "%s", fd < 0 ? error_name(errno) : "yes");
    if (fd >= 0) close(fd);
  }
  struct sockaddr_in low = {.sin_family = AF_INET, .sin_port = htons(79), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  say("socket", "bind to port 79", "%s", bind(fd, (struct sockaddr *)&low, sizeof low) ? error_name(errno) : "yes");
  if (fd >= 0) close(fd);
}

static void say_links(void) {
  struct if_nameindex *links = if_nameindex();
  for (struct if_nameindex *link = links; link && link->if_index; link++) say("link", link->if_name, "there");
  if (links) if_freenameindex(links);
  struct ifaddrs *all;
  if (getifaddrs(&all)) {
    say("address", "", "%s", error_name(errno));
    return;
  }
  for (struct ifaddrs *one = all; one; one = one->ifa_next) {
    char key[64];
    int family = one->ifa_addr ? one->ifa_addr->sa_family : 0, bits = 0;
    if (family != AF_INET && family != AF_INET6) continue;
    const unsigned char *mask = family == AF_INET ? (void *)&((struct sockaddr_in *)one->ifa_netmask)->sin_addr
                                                  : (void *)&((struct sockaddr_in6 *)one->ifa_netmask)->sin6_addr;
    for (int i = 0; i < (family == AF_INET ? 4 : 16); i++) bits += __builtin_popcount(mask[i]);
    const char *scope = family == AF_INET6 &&
      IN6_IS_ADDR_LINKLOCAL(&((struct sockaddr_in6 *)one->ifa_addr)->sin6_addr) ? " link-local" : "";
    snprintf(key, sizeof key, "%s inet%s%s", one->ifa_name, family == AF_INET ? "" : "6", scope);
    say("address", key, "/%d, flags %#x", bits, one->ifa_flags & (IFF_UP | IFF_LOOPBACK | IFF_BROADCAST | IFF_POINTOPOINT));
  }
  freeifaddrs(all);
}

/* Calls of which every one fails, whatever the privilege, when all its arguments are -1. */
#define CALL(name) {#name, SYS_##name}
static const struct { const char *name; long number; } calls[] = {
  CALL(acct), CALL(add_key), CALL(adjtimex), CALL(bpf), CALL(capset), CALL(chown), CALL(chroot), CALL(clock_adjtime),
  CALL(clock_settime), CALL(clone), CALL(clone3), CALL(close_range), CALL(copy_file_range), CALL(delete_module),
  CALL(execveat), CALL(faccessat2), CALL(fanotify_init), CALL(finit_module), CALL(fsconfig), CALL(fsmount),
  CALL(fsopen), CALL(fspick), CALL(get_mempolicy), CALL(getrandom), CALL(init_module), CALL(io_setup),
  CALL(io_uring_enter), CALL(io_uring_register), CALL(io_uring_setup), CALL(ioprio_set), CALL(kcmp),
  CALL(kexec_file_load), CALL(kexec_load), CALL(keyctl), CALL(lookup_dcookie), CALL(mbind), CALL(memfd_create),
  CALL(migrate_pages), CALL(mlockall), CALL(mount), CALL(move_mount), CALL(move_pages), CALL(name_to_handle_at),
  CALL(nfsservctl), CALL(open_by_handle_at), CALL(open_tree), CALL(openat2), CALL(perf_event_open), CALL(pidfd_getfd),
  CALL(pidfd_open), CALL(pidfd_send_signal), CALL(pivot_root), CALL(pkey_alloc), CALL(preadv2), CALL(process_madvise),
  CALL(process_vm_readv), CALL(process_vm_writev), CALL(ptrace), CALL(quotactl), CALL(reboot), CALL(remap_file_pages),
  CALL(request_key), CALL(rseq), CALL(sched_setattr), CALL(sched_setscheduler), CALL(seccomp), CALL(set_mempolicy),
  CALL(setdomainname), CALL(setgroups), CALL(sethostname), CALL(setns), CALL(setpriority), CALL(settimeofday),
  CALL(setuid), CALL(setxattr), CALL(shmget), CALL(statx), CALL(swapoff), CALL(swapon), CALL(syncfs), CALL(syslog),
  CALL(timer_create), CALL(umount2), CALL(unshare), CALL(userfaultfd), CALL(vmsplice),
#ifdef __x86_64__
  CALL(_sysctl), CALL(arch_prctl), CALL(create_module), CALL(ioperm), CALL(iopl), CALL(modify_ldt), CALL(sysfs),
  CALL(uselib), CALL(ustat),
#endif
  /* Newer than the C library's headers may be; these numbers are the same everywhere. */
  {"epoll_pwait2", 441}, {"mount_setattr", 442}, {"quotactl_fd", 443}, {"landlock_create_ruleset", 444},
  {"memfd_secret", 447}, {"process_mrelease", 448}, {"futex_waitv", 449}, {"set_mempolicy_home_node", 450},
  {"cachestat", 451}, {"fchmodat2", 452}, {"map_shadow_stack", 453}, {"futex_wake", 454}, {"statmount", 457},
  {"listmount", 458}, {"lsm_get_self_attr", 459}, {"mseal", 462}, {"no such call", 999}};

static void try_calls(void) {
  for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
    errno = 0;
    long result = syscall(calls[i].number, -1L, -1L, -1L, -1L, -1L, -1L);
    say("call", calls[i].name, "%s", result < 0 ? error_name(errno) : "ok");
  }
  static const struct { const char *name; unsigned long flag; } namespaces[] = {
    {"clone user", CLONE_NEWUSER}, {"clone mount", CLONE_NEWNS}, {"clone net", CLONE_NEWNET}, {"clone pid", CLONE_NEWPID}};
  for (unsigned i = 0; i < sizeof namespaces / sizeof *namespaces; i++) {
    long child = syscall(SYS_clone, namespaces[i].flag | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(0);
    say("call", namespaces[i].name, "%s", child < 0 ? error_name(errno) : "ok");
    if (child > 0) waitpid((pid_t)child, NULL, 0);
  }
  int before = personality(0xffffffff);
  say("call", "personality without randomisation", "%s",
      personality((unsigned)before | ADDR_NO_RANDOMIZE) < 0 ? error_name(errno) : "ok");
  personality((unsigned)before);
}

void say_attempts(void) {
  try_devices();
  try_sockets();
  say_links();
  try_calls();
}
