/* Signals: see interrupt.h. The handler sets flags and nothing else. */
#include "runner/interrupt.h"

#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

static atomic_int asked;
static atomic_llong asked_at_ms;

static long long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void on_signal(int sig)
{
    if (atomic_load(&asked) && sig == SIGINT) _exit(75);
    if (!atomic_load(&asked)) {
        atomic_store(&asked_at_ms, now_ms());
        atomic_store(&asked, sig);
    }
}

fkv_status fkv_interrupt_install(fkv_err *err)
{
    const int signals[] = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGHUP, SIGXCPU};
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, before;
    sigemptyset(&sa.sa_mask);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        /* Under nohup a run outlives its terminal. */
        if (signals[i] == SIGHUP && !sigaction(SIGHUP, NULL, &before) && before.sa_handler == SIG_IGN)
            continue;
        if (sigaction(signals[i], &sa, NULL)) return fkv_fail_errno(err, NULL, "signal handler");
    }
    signal(SIGPIPE, SIG_IGN);
    return FKV_OK;
}

int fkv_interrupt_signal(void)
{
    return atomic_load(&asked);
}

bool fkv_interrupt_asked(void)
{
    return fkv_interrupt_signal() != 0;
}

bool fkv_interrupt_asks(void *ctx)
{
    (void)ctx;
    return fkv_interrupt_asked();
}

double fkv_interrupt_age(void)
{
    return atomic_load(&asked) ? (double)(now_ms() - atomic_load(&asked_at_ms)) / 1000 : 0;
}
