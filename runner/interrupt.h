/* Signals. SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGXCPU and SIGHUP (unless nohup has it ignored) ask the run to
 * stop: it starts no more records and has job.grace seconds to finish what is in flight. A second SIGINT
 * leaves at once with exit code 75; what was journalled is safe.
 *
 * The handler sets flags and nothing else; whoever works asks for them. Once installed it stays for the
 * process; a failed install may have set some of the signals. Not for what stopping means (stream.c). */
#ifndef FKV_RUNNER_INTERRUPT_H
#define FKV_RUNNER_INTERRUPT_H

#include <stdbool.h>

#include "runner/base/status.h"

fkv_status fkv_interrupt_install(fkv_err *err);
/* The signal that asked to stop, or 0. */
int fkv_interrupt_signal(void);
bool fkv_interrupt_asked(void);
/* The same for who asks with a ctx, which is not looked at. */
bool fkv_interrupt_asks(void *ctx);
/* Seconds since it came; 0 if none did. */
double fkv_interrupt_age(void);

#endif
