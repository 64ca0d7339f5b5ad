/* A disk that fails: with LD_PRELOAD, writing to a file whose path contains $FAILING_PATH fails with $FAILING_ERRNO.

   Both are looked up at each call, so that a program can change them. fwrite is TensorFlow's way, write Python's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(int fd)
{
    const char *part = getenv("FAILING_PATH"), *number = getenv("FAILING_ERRNO");
    char link[64], path[4096];
    int kept = errno;
    ssize_t length = -1;
    if (part && *part && number) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        length = readlink(link, path, sizeof path - 1);
    }
    errno = kept;
    if (length < 0)
        return 0;
    path[length] = 0;
    if (path[0] != '/' || !strstr(path, part))
        return 0;
    errno = atoi(number);
    return 1;
}

ssize_t write(int fd, const void *data, size_t size)
{
    static ssize_t (*real)(int, const void *, size_t);
    if (fails(fd))
        return -1;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "write");
    return real(fd, data, size);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file)
{
    static size_t (*real)(const void *, size_t, size_t, FILE *);
    if (fails(fileno(file)))
        return 0;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "fwrite");
    return real(data, size, count, file);
}
