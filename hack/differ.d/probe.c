/*
 * Prints how a process sees itself and the container that it is in, one fact a line: `section key<TAB>value`. It judges
 * nothing and leaves nothing out for the sake of a comparison; that is its reader's job.
 *
 * Usage: probe [--stay] [WORD...]     with --stay it waits for a signal when it has printed everything
 */
#define _GNU_SOURCE
#include "probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <sched.h>
#include <unistd.h>

extern char **environ;

void say(const char *section, const char *key, const char *format, ...) {
  static char text[65536];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  printf("%s %s\t", section, key);
  for (const char *c = text; *c; c++) {
    if ((unsigned char)*c < ' ' || *c == '\\') printf("\\%03o", (unsigned char)*c);
    else putchar(*c);
  }
  putchar('\n');
}

const char *error_name(int error) {
  const char *name = error ? strerrorname_np(error) : "ok";
  return name ? name : "unnamed error";
}

/* Calls `line` for each line of a file. */
static void each_line(const char *path, void (*line)(char *)) {
  FILE *file = fopen(path, "re");
  char *text = NULL;
  size_t room = 0;
  if (!file) {
    say("unreadable", path, "%s", error_name(errno));
    return;
  }
  while (getline(&text, &room, file) > 0) {
    text[strcspn(text, "\n")] = 0;
    line(text);
  }
  free(text);
  fclose(file);
}

static void status_line(char *line) {
  char *value = strchr(line, ':');
  if (!value) return;
  *value++ = 0;
  value += strspn(value, " \t");
  say("status", line, "%s", value);
}

static void limit_line(char *line) {
  char *end = line + strlen("Max core file size       ");
  char soft[32], hard[32];
  if (strlen(line) < 26 || sscanf(end, "%31s %31s", soft, hard) != 2 || !strcmp(soft, "Soft")) return;
  while (end > line && end[-1] == ' ') end--;
  *end = 0;
  say("limit", line, "%s %s", soft, hard);
}

static void mount_line(char *line) { say("mount", "", "%s", line); }

static void cgroup_line(char *line) { say("cgroup", "/proc/self/cgroup", "%s", line); }

static void say_ids(void) {
  uid_t r, e, s;
  gid_t rg, eg, sg, groups[256];
  char text[4096] = "";
  getresuid(&r, &e, &s);
  getresgid(&rg, &eg, &sg);
  say("id", "uid", "%u %u %u", r, e, s);
  say("id", "gid", "%u %u %u", rg, eg, sg);
  int count = getgroups(256, groups);
  for (int i = 0; i < count; i++) sprintf(text + strlen(text), "%s%u", i ? " " : "", groups[i]);
  say("id", "groups", "%s", text);
}

static void say_process(int words, char **word) {
  char text[4096], key[64];
  for (int i = 0; i < words; i++) {
    sprintf(key, "argv[%d]", i);
    say("process", key, "%s", word[i]);
  }
  say("process", "cwd", "%s", getcwd(text, sizeof text) ? text : error_name(errno));
  say("process", "pid", "%d", getpid());
  say("process", "parent", "%d", getppid());
  say("process", "group", "%d", getpgrp());
  say("process", "session", "%d", getsid(0));
  mode_t mask = umask(0);
  umask(mask);
  say("process", "umask", "%03o", mask);
  say("process", "nice", "%d", getpriority(PRIO_PROCESS, 0));
  say("process", "scheduler", "%d", sched_getscheduler(0));
  say("process", "io priority", "%ld", syscall(SYS_ioprio_get, 1, 0));
  say("process", "personality", "%#x", personality(0xffffffff));
  say("process", "secure mode", "%lu", getauxval(AT_SECURE));
  say("process", "dumpable", "%d", prctl(PR_GET_DUMPABLE));
  say("process", "securebits", "%#x", prctl(PR_GET_SECUREBITS));
  say("process", "keepcaps", "%d", prctl(PR_GET_KEEPCAPS));
  say("process", "timer slack", "%d", prctl(PR_GET_TIMERSLACK));
  int signal = -1, reaper = -1;
  prctl(PR_GET_PDEATHSIG, &signal);
  prctl(PR_GET_CHILD_SUBREAPER, &reaper);
  say("process", "signal of parent's death", "%d", signal);
  say("process", "subreaper", "%d", reaper);
  long session = syscall(SYS_keyctl, 6 /* describe */, -3 /* session keyring */, text, sizeof text);
  say("process", "session keyring", "%s", session < 0 ? error_name(errno) : text);
  say("keyring", "session", "%ld", syscall(SYS_keyctl, 0 /* id of */, -3, 0));
}

static void say_terminal(void) {
  struct winsize size;
  for (int fd = 0; fd < 3; fd++) {
    char key[8];
    sprintf(key, "%d", fd);
    if (!isatty(fd)) say("terminal", key, "none");
    else if (ioctl(fd, TIOCGWINSZ, &size)) say("terminal", key, "no size: %s", error_name(errno));
    else say("terminal", key, "%s %dx%d", ttyname(fd) ? ttyname(fd) : "nameless", size.ws_col, size.ws_row);
  }
  int controlling = open("/dev/tty", O_RDWR | O_CLOEXEC);
  say("terminal", "controlling", "%s", controlling < 0 ? error_name(errno) : "yes");
  if (controlling >= 0) close(controlling);
}

static void say_descriptors(void) {
  DIR *folder = opendir("/proc/self/fd");
  if (!folder) {
    say("fd", "", "%s", error_name(errno));
    return;
  }
  for (struct dirent *entry; (entry = readdir(folder));) {
    char path[64], target[4096];
    int fd = atoi(entry->d_name);
    if (entry->d_name[0] == '.' || fd == dirfd(folder)) continue;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof target - 1);
    target[length < 0 ? 0 : length] = 0;
    int flags = fcntl(fd, F_GETFL);
    say("fd", entry->d_name, "%s %s%s%s", target,
        (flags & O_ACCMODE) == O_RDONLY ? "r" : (flags & O_ACCMODE) == O_WRONLY ? "w" : "rw",
        flags & O_APPEND ? " append" : "", flags & O_NONBLOCK ? " nonblocking" : "");
  }
  closedir(folder);
}

static void say_namespaces(void) {
  static const char *kinds[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};
  for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    char path[64], target[64];
    snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0) say("ns", kinds[i], "%s", error_name(errno));
    else say("ns", kinds[i], "%.*s", (int)length, target);
  }
}

static void say_processes(void) {
  DIR *folder = opendir("/proc");
  if (!folder) return;
  for (struct dirent *entry; (entry = readdir(folder));) {
    char path[300], name[64] = "?";
    struct stat about;
    if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
    snprintf(path, sizeof path, "/proc/%s", entry->d_name);
    if (stat(path, &about)) continue;
    strcat(path, "/comm");
    FILE *file = fopen(path, "re");
    if (!file) continue;
    if (fgets(name, sizeof name, file)) name[strcspn(name, "\n")] = 0;
    fclose(file);
    say("visible", entry->d_name, "%s of %u", name, about.st_uid);
  }
  closedir(folder);
}

int main(int words, char **word) {
  static char room[1 << 18];
  setvbuf(stdout, room, _IOFBF, sizeof room);
  int stay = words > 1 && !strcmp(word[1], "--stay");
  each_line("/proc/self/status", status_line);
  say_descriptors();
  say_ids();
  say_process(words, word);
  say_terminal();
  say_namespaces();
  say_processes();
  for (char **variable = environ; *variable; variable++) {
    char *value = strchr(*variable, '=');
    if (value) *value++ = 0;
    say("env", *variable, "%s", value ? value : "no value");
  }
  each_line("/proc/self/limits", limit_line);
  each_line("/proc/self/mountinfo", mount_line);
  each_line("/proc/self/cgroup", cgroup_line);
  say_files();
  say_attempts();
  say("end", "", "complete");
  fflush(stdout);
  if (stay) pause();
  return 0;
}
