/* Memory of a CPU device: see cpu_device.h. */
#include <sys/mman.h>

#include "kernels/cpu_device.h"
#include "runner/base/mem.h"

fkv_status cpu_alloc(fkv_device *dev, size_t bytes, void **out, fkv_err *err)
{
    if (dev->n_blocks == dev->cap_blocks) {
        const int cap = dev->cap_blocks ? 2 * dev->cap_blocks : 64;
        cpu_block *grown = fkv_realloc(dev->blocks, (size_t)cap, sizeof *grown);
        if (!grown) return fkv_fail_memory(err);
        dev->blocks = grown;
        dev->cap_blocks = cap;
    }
    size_t padded;
    if (!fkv_add_size(bytes, 256, &padded)) return fkv_fail_memory(err);
    void *p = mmap(NULL, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return fkv_fail_errno(err, NULL, "%zu bytes for the CPU device", bytes);
    dev->blocks[dev->n_blocks++] = (cpu_block){p, padded};
    *out = p;
    return FKV_OK;
}

void cpu_free_blocks(fkv_device *dev, int64_t n)
{
    while (dev->n_blocks > n) {
        const cpu_block *b = &dev->blocks[--dev->n_blocks];
        munmap(b->data, b->bytes);
    }
}
