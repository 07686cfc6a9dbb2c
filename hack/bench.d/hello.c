// The program both sides of the comparison end in: says one byte, then waits to be killed.
#include <unistd.h>

int main(void) {
  if (write(1, "x", 1) != 1) return 1;
  for (;;) pause();
}
