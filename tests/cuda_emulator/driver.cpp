// A libcuda for machines without a GPU: the driver functions that the runtime calls, on host memory. A module is a
// shared library built from the kernels' source and device.h. Streams do everything as late as somebody waits for it;
// what is captured is recorded and done when the graph is launched. Threads without a context are refused.
#include <dlfcn.h>
#include <unistd.h>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

typedef int Result;
typedef void* Handle;
enum { SUCCESS = 0, INVALID = 1, NOT_FOUND = 500, INVALID_IMAGE = 200, INVALID_CONTEXT = 201 };

struct Function { void (*call)(void**); int parameters; Handle library; int shared = 48 << 10; };
struct Graph { std::vector<std::function<void()>> steps; };
struct Stream {
  std::deque<std::function<void()>> queue;
  uint64_t done = 0;
  Graph* capture = nullptr;
  uint64_t end() const { return done + queue.size(); }
};
struct Event { std::chrono::steady_clock::time_point at; Stream* stream = nullptr; uint64_t position = 0; };

static std::recursive_mutex everything;
#define ALONE std::lock_guard<std::recursive_mutex> alone(everything)
static thread_local std::vector<Handle> contexts;
#define NEEDS_CONTEXT if (contexts.empty()) return INVALID_CONTEXT
static std::map<uint8_t*, size_t> memory;
static std::set<const void*> pinned;
static Stream default_stream;
static std::vector<Stream*> streams{&default_stream};

static Stream& stream_of(Handle handle) { return (uintptr_t)handle <= 2 ? default_stream : *(Stream*)handle; }

static void run_until(Stream& stream, uint64_t position) {
  while (stream.done < position) {
    auto step = std::move(stream.queue.front());
    stream.queue.pop_front();
    ++stream.done;
    step();
  }
}

static Result submit(Handle handle, std::function<void()> step) {
  NEEDS_CONTEXT;
  ALONE;
  Stream& stream = stream_of(handle);
  if (stream.capture) stream.capture->steps.push_back(std::move(step));
  else stream.queue.push_back(std::move(step));
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
Result cuCtxPushCurrent_v2(Handle context) { contexts.push_back(context); return SUCCESS; }
Result cuCtxPopCurrent_v2(Handle* out) {
  NEEDS_CONTEXT;
  *out = contexts.back();
  contexts.pop_back();
  return SUCCESS;
}

Result cuModuleLoadData(Handle* out, const void* image) {
  NEEDS_CONTEXT;
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

Result cuMemAlloc_v2(uint8_t** out, size_t size) {
  NEEDS_CONTEXT;
  ALONE;
  if (!size) return INVALID;
  if (posix_memalign((void**)out, 256, size + 256)) return 2;
  memset(*out, 0xA5, size + 256);
  memory[*out] = size;
  return SUCCESS;
}
Result cuMemFree_v2(uint8_t* pointer) {
  NEEDS_CONTEXT;
  ALONE;
  auto found = memory.find(pointer);
  if (found == memory.end()) return INVALID;
  for (Stream* stream : streams) run_until(*stream, stream->end());
  for (int i = 0; i < 256; ++i)
    if (pointer[found->second + i] != 0xA5) { fprintf(stderr, "emulator: a write beyond memory\n"); abort(); }
  memset(pointer, 0xDE, found->second);
  memory.erase(found);
  free(pointer);
  return SUCCESS;
}
Result cuMemHostAlloc(void** out, size_t size, unsigned) {
  NEEDS_CONTEXT;
  ALONE;
  if (posix_memalign(out, 256, size ? size : 1)) return 2;
  pinned.insert(*out);
  return SUCCESS;
}
Result cuMemFreeHost(void* pointer) {
  NEEDS_CONTEXT;
  ALONE;
  if (!pinned.erase(pointer)) return INVALID;
  free(pointer);
  return SUCCESS;
}
Result cuPointerGetAttribute(void* out, int attribute, uint8_t* pointer) {
  ALONE;
  auto after = memory.upper_bound(pointer);
  if (attribute != 9 || after == memory.begin() || pointer >= std::prev(after)->first + std::prev(after)->second) return INVALID;
  *(int*)out = 0;
  return SUCCESS;
}
Result cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t size, Handle stream) {
  std::string staged((const char*)from, size);  // the driver copies memory that is not pinned before it returns
  return submit(stream, [=] { memcpy(to, staged.data(), size); });
}
Result cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t size, Handle stream) {
  return submit(stream, [=] { memcpy(to, from, size); });
}
Result cuMemcpyDtoH_v2(void* to, const void* from, size_t size) {
  NEEDS_CONTEXT;
  ALONE;
  run_until(default_stream, default_stream.end());
  memcpy(to, from, size);
  return SUCCESS;
}
Result cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t size, Handle stream) {
  return submit(stream, [=] { memcpy(to, from, size); });
}
Result cuMemsetD8Async(void* to, unsigned char value, size_t size, Handle stream) {
  return submit(stream, [=] { memset(to, value, size); });
}
Result cuStreamCreate(Handle* out, unsigned) {
  NEEDS_CONTEXT;
  ALONE;
  streams.push_back(new Stream);
  *out = streams.back();
  return SUCCESS;
}
Result cuStreamSynchronize(Handle handle) {
  NEEDS_CONTEXT;
  ALONE;
  Stream& stream = stream_of(handle);
  if (stream.capture) return INVALID;
  run_until(stream, stream.end());
  return SUCCESS;
}
Result cuStreamWaitEvent(Handle stream, Handle handle, unsigned) {
  ALONE;
  const Event event = *(Event*)handle;
  return event.stream ? submit(stream, [=] { run_until(*event.stream, event.position); }) : SUCCESS;
}
Result cuStreamBeginCapture_v2(Handle handle, int) {
  NEEDS_CONTEXT;
  ALONE;
  Stream& stream = stream_of(handle);
  if (stream.capture) return INVALID;
  stream.capture = new Graph;
  return SUCCESS;
}
Result cuStreamEndCapture(Handle handle, Handle* out) {
  ALONE;
  *out = stream_of(handle).capture;
  stream_of(handle).capture = nullptr;
  return *out ? SUCCESS : INVALID;
}
Result cuGraphInstantiateWithFlags(Handle* out, Handle graph, unsigned long long) { *out = new Graph(*(Graph*)graph); return SUCCESS; }
Result cuGraphDestroy(Handle graph) { delete (Graph*)graph; return SUCCESS; }
Result cuGraphExecDestroy(Handle graph) { delete (Graph*)graph; return SUCCESS; }
Result cuGraphLaunch(Handle graph, Handle stream) {
  Result status = SUCCESS;
  for (auto& step : ((Graph*)graph)->steps) status = submit(stream, step);
  return status;
}

Result cuLaunchKernel(Handle f, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                      unsigned shared, Handle stream, void** params, void** extra) {
  Function* function = (Function*)f;
  if (!x || !y || !z || y > 65535 || z > 65535 || !tx || tx > 1024 || ty != 1 || tz != 1 || extra) return INVALID;
  if ((int)shared > function->shared) return INVALID;
  std::vector<uint64_t> values(function->parameters);  // every parameter is a number or an address of at most 8 bytes
  for (int i = 0; i < function->parameters; ++i) memcpy(&values[i], params[i], 8);
  auto launch = (void (*)(void (*)(void**), const unsigned*, unsigned, unsigned, void**))dlsym(function->library, "emulated_launch");
  return submit(stream, [=]() mutable {
    std::vector<void*> pointers;
    for (auto& value : values) pointers.push_back(&value);
    const unsigned grid[3] = {x, y, z};
    launch(function->call, grid, tx, shared, pointers.data());
  });
}

Result cuEventCreate(Handle* out, unsigned) { NEEDS_CONTEXT; *out = new Event; return SUCCESS; }
Result cuEventDestroy_v2(Handle event) { return SUCCESS; }  // recorded events may still be waited for
Result cuEventRecord(Handle handle, Handle stream) {
  ALONE;
  Event* event = (Event*)handle;
  const Result status = submit(stream, [=] { event->at = std::chrono::steady_clock::now(); });
  event->stream = &stream_of(stream);
  event->position = event->stream->end();
  return status;
}
Result cuEventSynchronize(Handle handle) {
  ALONE;
  Event* event = (Event*)handle;
  if (event->stream) run_until(*event->stream, event->position);
  return SUCCESS;
}
Result cuEventElapsedTime(float* out, Handle first, Handle last) {
  *out = std::chrono::duration<float, std::milli>(((Event*)last)->at - ((Event*)first)->at).count();
  return SUCCESS;
}
Result cuGetErrorName(Result error, const char** out) {
  *out = error == 100 ? "CUDA_ERROR_NO_DEVICE" : error == 101 ? "CUDA_ERROR_INVALID_DEVICE" : "CUDA_ERROR_EMULATED";
  return SUCCESS;
}

}  // extern "C"
