/* Stands for a service's program: an ELF file that takes a file capability, as the real one, and then serves what service.py says. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    char line[256], **words = calloc(argc + 3, sizeof *words);
    FILE *status = fopen("/proc/self/status", "r");
    /* Python, which has no file capability, will have lost it. */
    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, "CapEff:", 7)) {
            line[strcspn(line, "\n")] = 0;
            setenv("STAND_IN_CAPEFF", line + 8, 1);
        }
    words[0] = "python3";
    words[1] = "/opt/stand-in/service.py";
    for (int i = 0; i < argc; i++) words[i + 2] = argv[i];
    execv("/usr/bin/python3", words);
    return 127;
}
