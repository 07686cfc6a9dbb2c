// What the kernel itself charges for the sandbox of a pod: a network, an IPC and a UTS namespace, pins for them, and a
// static program started in them, up to its first byte. No daemon, no protocol, no interface.
//
// One line of output a round: nanoseconds of each phase. Taking the round apart again is not measured.
//
// usage: net-floor ROUNDS PINS PROGRAM
//   PINS     empty folder for the pinned namespaces
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void check(long result, const char *what) {
  if (result >= 0) return;
  perror(what);
  exit(1);
}

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static const char *const kinds[] = {"net", "ipc", "uts"};
static int host[3];

static void round_trip(const char *pins, char *program) {
  char path[3][4096], source[64], byte;
  int out[2], status;
  pid_t pid;
  check(pipe2(out, O_CLOEXEC), "pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);

  int64_t start = now();
  check(unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS), "unshare");
  int64_t made = now();
  for (int i = 0; i < 3; i++) {
    snprintf(path[i], sizeof path[i], "%s/%s", pins, kinds[i]);
    snprintf(source, sizeof source, "/proc/self/ns/%s", kinds[i]);
    int fd = open(path[i], O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
    check(fd, path[i]);
    close(fd);
    check(mount(source, path[i], NULL, MS_BIND, NULL), path[i]);
  }
  int64_t pinned = now();
  char *const argv[] = {program, NULL}, *const envp[] = {NULL};
  int error = posix_spawn(&pid, program, &actions, NULL, argv, envp);
  check(error ? -1 : 0, program);
  close(out[1]);
  if (read(out[0], &byte, 1) != 1) { fprintf(stderr, "net-floor: the program said nothing\n"); exit(1); }
  int64_t spoke = now();
  printf("%lld %lld %lld\n", (long long)(made - start), (long long)(pinned - made), (long long)(spoke - pinned));

  close(out[0]);
  check(kill(pid, SIGKILL), "kill");
  check(waitpid(pid, &status, 0), "wait");
  posix_spawn_file_actions_destroy(&actions);
  for (int i = 0; i < 3; i++) {
    check(setns(host[i], 0), "setns");
    check(umount2(path[i], MNT_DETACH), path[i]);
    check(unlink(path[i]), path[i]);
  }
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: net-floor ROUNDS PINS PROGRAM\n");
    return 2;
  }
  for (int i = 0; i < 3; i++) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
    check(host[i] = open(path, O_RDONLY | O_CLOEXEC), path);
  }
  for (int round = 0; round < atoi(argv[1]); round++) round_trip(argv[2], argv[3]);
  return 0;
}
