/* The least that an exec in a container can cost: joins the namespaces of a process, clones into them, executes a
 * program, waits for its end. Prints nanoseconds, one line a round. Usage: exec_floor PID ROUNDS PROGRAM */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int one(int pidfd, const char *program)
{
    /* The namespaces of this process stay: a helper enters, and its child is born inside. */
    pid_t helper = fork();
    if (helper < 0) return -1;
    if (helper == 0) {
        if (setns(pidfd, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET)) _exit(101);
        pid_t child = fork();
        if (child < 0) _exit(102);
        if (child == 0) {
            char *arguments[] = {(char *)program, NULL}, *environment[] = {NULL};
            execve(program, arguments, environment);
            _exit(103);
        }
        int status;
        if (waitpid(child, &status, 0) < 0 || !WIFEXITED(status)) _exit(104);
        _exit(WEXITSTATUS(status));
    }
    int status;
    if (waitpid(helper, &status, 0) < 0) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int main(int argc, char **argv)
{
    if (argc != 4) return 2;
    int pidfd = (int)syscall(SYS_pidfd_open, atoi(argv[1]), 0);
    if (pidfd < 0) return perror("pidfd_open"), 1;
    for (int round = atoi(argv[2]); round > 0; round--) {
        long long begin = now();
        int code = one(pidfd, argv[3]);
        if (code) return fprintf(stderr, "exec_floor: ended with %d\n", code), 1;
        printf("%lld\n", now() - begin);
    }
    return 0;
}
