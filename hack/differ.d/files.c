/* The files that a process finds: the root file system, /dev, what is masked or read-only, limits and settings. */
#define _GNU_SOURCE
#include "probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define EACH(item, list) for (const char **item = list; *item; item++)

static const char kinds[] = "?pc?d?b?-?l?s???";

/* Type, mode, owner and what else there is to say about one file. */
static void say_entry(const char *section, const char *path, const struct stat *about) {
  char extra[4200] = "";
  if (S_ISCHR(about->st_mode) || S_ISBLK(about->st_mode)) {
    sprintf(extra, " %u:%u", major(about->st_rdev), minor(about->st_rdev));
  } else if (S_ISLNK(about->st_mode)) {
    ssize_t length = readlink(path, extra + 4, 4096);
    memcpy(extra, " -> ", 4);
    extra[length < 0 ? 4 : length + 4] = 0;
  }
  say(section, path, "%c%04o %u:%u%s", kinds[about->st_mode >> 12 & 15], about->st_mode & 07777, about->st_uid,
      about->st_gid, extra);
}

/* All entries below a folder, as far as they are on its own file system. */
static void say_tree(const char *section, const char *path, dev_t device) {
  DIR *folder = opendir(path);
  if (!folder) {
    say(section, path, "%s", error_name(errno));
    return;
  }
  for (struct dirent *entry; (entry = readdir(folder));) {
    char inner[4096];
    struct stat about;
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    snprintf(inner, sizeof inner, "%s/%s", strcmp(path, "/") ? path : "", entry->d_name);
    if (lstat(inner, &about)) {
      say(section, inner, "%s", error_name(errno));
      continue;
    }
    say_entry(section, inner, &about);
    if (S_ISDIR(about.st_mode) && about.st_dev == device) say_tree(section, inner, device);
  }
  closedir(folder);
}

/* The first bytes of a file, or why not. */
static void say_content(const char *section, const char *path) {
  char text[4096];
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    say(section, path, "%s", error_name(errno));
    return;
  }
  ssize_t length = read(fd, text, sizeof text - 1);
  if (length < 0) say(section, path, "read: %s", error_name(errno));
  else say(section, path, "%.*s", (int)(length && text[length - 1] == '\n' ? length - 1 : length), text);
  close(fd);
}

/* Whether a path that may be masked gives anything. */
static void say_hidden(const char *path) {
  struct stat about;
  if (lstat(path, &about)) {
    say("hidden", path, "%s", error_name(errno));
    return;
  }
  say_entry("hidden", path, &about);
  char key[300], text[64];
  snprintf(key, sizeof key, "%s content", path);
  if (S_ISDIR(about.st_mode)) {
    DIR *folder = opendir(path);
    int count = 0;
    if (!folder) {
      say("hidden", key, "%s", error_name(errno));
      return;
    }
    while (readdir(folder)) count++;
    say("hidden", key, "%s", count > 2 ? "entries" : "none");
    closedir(folder);
    return;
  }
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text);
  say("hidden", key, "%s", length < 0 ? error_name(errno) : length ? "bytes" : "none");
  if (fd >= 0) close(fd);
}

/* Whether a file can be opened for writing, or a file made in a folder. */
static void say_writable(const char *path) {
  struct stat about;
  char inner[300];
  if (stat(path, &about)) {
    say("writable", path, "%s", error_name(errno));
    return;
  }
  int fd;
  if (S_ISDIR(about.st_mode)) {
    snprintf(inner, sizeof inner, "%s/.probe", path);
    fd = open(inner, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    say("writable", path, "%s", fd < 0 ? error_name(errno) : "yes");
    if (fd >= 0) unlink(inner);
  } else {
    fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    say("writable", path, "%s", fd < 0 ? error_name(errno) : "yes");
  }
  if (fd >= 0) close(fd);
}

static void say_size(const char *path) {
  struct statfs about;
  if (statfs(path, &about)) {
    say("size", path, "%s", error_name(errno));
    return;
  }
  say("size", path, "type %#lx, %lu KiB, %lu files, flags %#lx", (long)about.f_type,
      (unsigned long)(about.f_blocks * about.f_bsize / 1024), (unsigned long)about.f_files, (long)about.f_flags);
}

void say_files(void) {
  static const char *hidden[] = {
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/proc/kallsyms", "/proc/kpagecount",
    "/proc/config.gz", "/proc/sysrq-trigger", "/proc/iomem", "/proc/key-users", "/proc/1/environ", "/proc/1/root",
    "/sys/firmware", "/sys/devices/virtual/powercap", "/sys/devices/system/cpu/cpu0/thermal_throttle",
    "/sys/kernel/security", "/sys/kernel/debug", "/sys/fs/bpf", "/sys/fs/cgroup/cgroup.procs", NULL};
  static const char *writable[] = {
    "/", "/bin", "/etc", "/tmp", "/run", "/proc", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/dev", "/dev/shm",
    "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
    "/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/shmmax",
    "/proc/sys/net/ipv4/ip_forward", "/proc/self/oom_score_adj", "/proc/self/attr/exec", "/proc/self/setgroups",
    "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/uevent_helper", "/sys/power/state",
    "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cgroup.subtree_control", "/etc/hosts",
    "/etc/hostname", "/etc/resolv.conf", "/data", "/data/inner", "/read-only", "/read-only/inner", "/file", "/declared",
    "/home/app", "/work/deep", NULL};
  static const char *contents[] = {
    "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/proc/self/attr/current", "/proc/self/attr/exec",
    "/proc/self/oom_score_adj", "/proc/self/coredump_filter", "/proc/self/loginuid", "/proc/self/setgroups",
    "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/timens_offsets", "/proc/self/cpu_resctrl_groups",
    "/proc/1/cgroup", NULL};
  static const char *settings[] = {
    "kernel/hostname", "kernel/domainname", "kernel/shmmax", "kernel/shmall", "kernel/shmmni", "kernel/msgmax",
    "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shm_rmid_forced", "kernel/pid_max", "fs/mqueue/msg_max",
    "fs/mqueue/queues_max", "net/ipv4/ip_forward", "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range",
    "net/ipv4/ip_local_port_range", "net/ipv4/tcp_syncookies", "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/all/route_localnet", "net/ipv4/conf/all/accept_redirects",
    "net/ipv4/conf/all/arp_notify", "net/ipv4/conf/eth0/arp_notify", "net/ipv4/conf/eth0/rp_filter",
    "net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6", "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/eth0/accept_dad", "net/ipv6/conf/eth0/disable_ipv6",
    "net/ipv6/conf/eth0/forwarding", "net/core/somaxconn", "user/max_user_namespaces", NULL};
  static const char *limits[] = {
    "cpu.max", "cpu.max.burst", "cpu.weight", "cpu.idle", "cpuset.cpus", "cpuset.mems", "cpuset.cpus.effective",
    "cpuset.cpus.partition", "memory.max", "memory.min", "memory.low", "memory.high", "memory.swap.max",
    "memory.swap.high", "memory.zswap.max", "memory.oom.group", "pids.max", "io.max", "io.weight", "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max", "hugetlb.1GB.max", "misc.max", "rdma.max", "cgroup.controllers", "cgroup.subtree_control",
    "cgroup.type", "cgroup.max.depth", "cgroup.max.descendants", "cgroup.freeze", "cgroup.pressure", NULL};
  static const char *sizes[] = {"/", "/dev", "/dev/shm", "/proc", "/sys", "/sys/fs/cgroup", "/tmp", "/data", NULL};
  static const char *trees[] = {"/dev", "/data", "/data/inner", "/declared", NULL};
  char path[300];
  struct stat root;
  EACH(name, hidden) say_hidden(*name);
  EACH(name, writable) say_writable(*name);
  EACH(name, contents) say_content("content", *name);
  EACH(name, settings) {
    snprintf(path, sizeof path, "/proc/sys/%s", *name);
    say_content("sysctl", path);
  }
  EACH(name, limits) {
    snprintf(path, sizeof path, "/sys/fs/cgroup/%s", *name);
    say_content("cgroup", path);
  }
  EACH(name, sizes) say_size(*name);
  if (!lstat("/", &root)) {
    say_entry("tree", "/", &root);
    say_tree("tree", "/", root.st_dev);
  }
  EACH(name, trees) {
    if (lstat(*name, &root)) continue;
    say_entry("tree", *name, &root);
    say_tree("tree", *name, root.st_dev);
  }
}
