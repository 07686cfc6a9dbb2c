/* What the parts of the probe share: one line a fact, `section key<TAB>value`. */
#pragma once

/* Prints one fact. Control characters in it come out as octal escapes, so that it stays one line. */
__attribute__((format(printf, 3, 4))) void say(const char *section, const char *key, const char *format, ...);

/* The name of an error, "ok" for 0. */
const char *error_name(int error);

/* Prints what the program is: probe.c and files.c. */
void say_files(void);
/* Prints what it may do, by trying: attempts.c. */
void say_attempts(void);
