/* A handler that leaves a child behind, for `deploy/image/check`: an image from scratch has no shell that could. The child leaves the
   handler's group, outlives it and ends; it is then for PID 1, which is relay, to collect it. The job's payload is its result;
   one that begins with `slow` takes a second, so that it is still in hand when relay is stopped. */
#include <string.h>
#include <unistd.h>

int main(void) {
    char buffer[4096];
    ssize_t length;
    while ((length = read(0, buffer, sizeof buffer)) > 0) {
        if (length >= 4 && memcmp(buffer, "slow", 4) == 0) usleep(999999);
        if (write(1, buffer, (size_t)length) != length) return 1;
    }
    if (fork() == 0) {
        setsid();
        for (int file = 0; file < 3; file++) close(file);
        usleep(20000);
        _exit(0);
    }
    return 0;
}
