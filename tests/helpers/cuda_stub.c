// A stand-in for the CUDA driver: Triton compiles, loads and launches kernels as on an H100, but nothing runs.
#include <stddef.h>
#include <stdint.h>

static long launches = 0;
long stub_launches(void) { return launches; }

int cuGetErrorString(int error, const char **text) { *text = "stub"; return 0; }
int cuGetProcAddress_v2(const char *name, void **f, int version, uint64_t flags, void *found) { return 1; }
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
// 232,448 bytes of shared memory and 132 multiprocessors are an H100's; Triton reads no other attribute but the warp size
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 10 ? 32 : attribute == 16 ? 132 : 232448;
    return 0;
}
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuCtxGetLimit(size_t *size, int limit) { *size = 0; return 0; }
int cuCtxSetLimit(int limit, size_t size) { return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = (void *)1; return 0; }
int cuModuleUnload(void *module) { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)1; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 0 ? 1024 : 0; return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int config) { return 0; }
int cuOccupancyMaxActiveClusters(int *clusters, void *function, void *config) { *clusters = 1; return 0; }
int cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) { *(uint64_t *)value = pointer; return 0; }
int cuStreamIsCapturing(void *stream, int *capturing) { *capturing = 0; return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
int cuTensorMapEncodeIm2col(void) { return 0; }
int cuLaunchKernelEx(const void *config, void *function, void **arguments, void **extra) { launches++; return 0; }
