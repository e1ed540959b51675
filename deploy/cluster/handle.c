/* The handler of the scenarios: its payload is "MILLISECONDS TEXT"; it takes that long and answers the text. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(void) {
    char text[4096];
    size_t length = fread(text, 1, sizeof text - 1, stdin);
    text[length] = 0;
    char *rest;
    long milliseconds = strtol(text, &rest, 10);
    struct timespec pause = {milliseconds / 1000, (milliseconds % 1000) * 1000000};
    nanosleep(&pause, NULL);
    fputs(rest, stdout);
    return 0;
}
