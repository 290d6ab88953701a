// A libcuda for machines without a GPU: the driver functions that the runtime calls, on host memory. A module is a
// shared library built from the kernels' source and device.h. Streams do everything at once; what is captured is
// recorded and done when the graph is launched.
#include <dlfcn.h>
#include <unistd.h>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

typedef int Result;
typedef void* Handle;
enum { SUCCESS = 0, INVALID = 1, NOT_FOUND = 500, INVALID_IMAGE = 200 };

struct Function { void (*call)(void**); int parameters; Handle library; int shared = 48 << 10; };
struct Graph { std::vector<std::function<void()>> steps; };
struct Event { std::chrono::steady_clock::time_point at; };

static Graph* capture = nullptr;
static std::map<void*, size_t> memory;

static Result submit(std::function<void()> step) {
  if (capture) capture->steps.push_back(std::move(step));
  else step();
  return SUCCESS;
}

extern "C" {

Result cuInit(unsigned) { return getenv("EMULATOR_NO_DEVICE") ? 100 : SUCCESS; }
Result cuDriverGetVersion(int* out) { *out = 13000; return SUCCESS; }
Result cuDeviceGetCount(int* out) { *out = 1; return SUCCESS; }
Result cuDeviceGet(int* out, int number) { *out = number; return number ? 101 : SUCCESS; }
Result cuDeviceGetName(char* out, int size, int) { snprintf(out, size, "emulator"); return SUCCESS; }
Result cuDeviceGetAttribute(int* out, int attribute, int) {
  const char *processors = getenv("EMULATOR_PROCESSORS"), *shared = getenv("EMULATOR_SHARED");
  switch (attribute) {
    case 16: *out = processors ? atoi(processors) : 4; return SUCCESS;
    case 75: *out = 9; return SUCCESS;
    case 76: *out = 0; return SUCCESS;
    case 97: *out = shared ? atoi(shared) : 227 << 10; return SUCCESS;
  }
  return INVALID;
}
Result cuDevicePrimaryCtxRetain(Handle* out, int) { *out = (Handle)1; return SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
Result cuCtxSetCurrent(Handle) { return SUCCESS; }

Result cuModuleLoadData(Handle* out, const void* image) {
  // the length of an ELF file: the end of its section headers, which the linker puts last
  const uint8_t* bytes = (const uint8_t*)image;
  if (memcmp(bytes, "\177ELF", 4)) return INVALID_IMAGE;
  uint64_t sections; uint16_t each, count;
  memcpy(&sections, bytes + 0x28, 8); memcpy(&each, bytes + 0x3A, 2); memcpy(&count, bytes + 0x3C, 2);
  std::string path = std::filesystem::temp_directory_path() / "emulated-XXXXXX";
  const int file = mkstemp(path.data());
  const size_t size = sections + (size_t)each * count;
  if (write(file, bytes, size) != (ssize_t)size) return INVALID;
  close(file);
  *out = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!*out) fprintf(stderr, "emulator: %s\n", dlerror());
  unlink(path.c_str());
  return *out ? SUCCESS : INVALID_IMAGE;
}
Result cuModuleUnload(Handle) { return SUCCESS; }
Result cuModuleGetFunction(Handle* out, Handle library, const char* name) {
  auto call = (void (*)(void**))dlsym(library, (std::string("emulated_") + name).c_str());
  auto parameters = (const int*)dlsym(library, (std::string("parameters_") + name).c_str());
  if (!call || !parameters) return NOT_FOUND;
  *out = new Function{call, *parameters, library};
  return SUCCESS;
}
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* out, Handle, int threads, size_t shared) {
  *out = std::min<size_t>(2048 / threads, (227 << 10) / (shared + 1024));
  return SUCCESS;
}
Result cuFuncSetAttribute(Handle function, int attribute, int value) {
  if (attribute != 8 || value > 227 << 10) return INVALID;
  ((Function*)function)->shared = value;
  return SUCCESS;
}

Result cuMemAlloc_v2(void** out, size_t size) {
  if (!size) return INVALID;
  if (posix_memalign(out, 256, size + 256)) return 2;
  memset(*out, 0xA5, size + 256);
  memory[*out] = size;
  return SUCCESS;
}
Result cuMemFree_v2(void* pointer) {
  auto found = memory.find(pointer);
  if (found == memory.end()) return INVALID;
  for (int i = 0; i < 256; ++i)
    if (((uint8_t*)pointer)[found->second + i] != 0xA5) { fprintf(stderr, "emulator: a write beyond memory\n"); abort(); }
  memory.erase(found);
  free(pointer);
  return SUCCESS;
}
Result cuMemHostAlloc(void** out, size_t size, unsigned) { return posix_memalign(out, 256, size ? size : 1) ? 2 : SUCCESS; }
Result cuMemFreeHost(void* pointer) { free(pointer); return SUCCESS; }
Result cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t size, Handle) {
  return submit([=] { memcpy(to, from, size); });
}
Result cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t size, Handle) {
  return submit([=] { memcpy(to, from, size); });
}
Result cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t size, Handle) {
  return submit([=] { memcpy(to, from, size); });
}
Result cuMemsetD8Async(void* to, unsigned char value, size_t size, Handle) {
  return submit([=] { memset(to, value, size); });
}
Result cuStreamCreate(Handle* out, unsigned) { *out = (Handle)2; return SUCCESS; }
Result cuStreamDestroy_v2(Handle) { return SUCCESS; }
Result cuStreamSynchronize(Handle) { return capture ? INVALID : SUCCESS; }
Result cuStreamBeginCapture_v2(Handle, int) {
  if (capture) return INVALID;
  capture = new Graph;
  return SUCCESS;
}
Result cuStreamEndCapture(Handle, Handle* out) { *out = capture; capture = nullptr; return *out ? SUCCESS : INVALID; }
Result cuGraphInstantiateWithFlags(Handle* out, Handle graph, unsigned long long) { *out = new Graph(*(Graph*)graph); return SUCCESS; }
Result cuGraphDestroy(Handle graph) { delete (Graph*)graph; return SUCCESS; }
Result cuGraphExecDestroy(Handle graph) { delete (Graph*)graph; return SUCCESS; }
Result cuGraphLaunch(Handle graph, Handle) {
  for (auto& step : ((Graph*)graph)->steps) step();
  return SUCCESS;
}

Result cuLaunchKernel(Handle f, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                      unsigned shared, Handle, void** params, void** extra) {
  Function* function = (Function*)f;
  if (!x || !y || !z || y > 65535 || z > 65535 || !tx || tx > 1024 || ty != 1 || tz != 1 || extra) return INVALID;
  if ((int)shared > function->shared) return INVALID;
  std::vector<uint64_t> values(function->parameters);  // every parameter is a number or an address of at most 8 bytes
  for (int i = 0; i < function->parameters; ++i) memcpy(&values[i], params[i], 8);
  auto launch = (void (*)(void (*)(void**), const unsigned*, unsigned, unsigned, void**))dlsym(function->library, "emulated_launch");
  return submit([=]() mutable {
    std::vector<void*> pointers;
    for (auto& value : values) pointers.push_back(&value);
    const unsigned grid[3] = {x, y, z};
    launch(function->call, grid, tx, shared, pointers.data());
  });
}

Result cuEventCreate(Handle* out, unsigned) { *out = new Event; return SUCCESS; }
Result cuEventDestroy_v2(Handle event) { delete (Event*)event; return SUCCESS; }
Result cuEventRecord(Handle event, Handle) {
  return submit([=] { ((Event*)event)->at = std::chrono::steady_clock::now(); });
}
Result cuEventSynchronize(Handle) { return SUCCESS; }
Result cuEventElapsedTime(float* out, Handle first, Handle last) {
  *out = std::chrono::duration<float, std::milli>(((Event*)last)->at - ((Event*)first)->at).count();
  return SUCCESS;
}
Result cuGetErrorName(Result error, const char** out) {
  *out = error == 100 ? "CUDA_ERROR_NO_DEVICE" : error == 101 ? "CUDA_ERROR_INVALID_DEVICE" : "CUDA_ERROR_EMULATED";
  return SUCCESS;
}

}  // extern "C"
