/* Says under which user it runs: the one program of the image that the no-new-privileges tests start setuid. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
  printf("Effective uid: %d\n", (int)geteuid());
  return 0;
}
