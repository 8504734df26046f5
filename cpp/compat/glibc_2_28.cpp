// Lets a binary that is built on a newer system load where glibc is 2.28: every reference to a symbol whose
// newest version is younger than that is led to its old version, or to a replacement written here.
//
// The linker's --wrap sends references to `name` to `__wrap_name`, also those out of libstdc++.a and
// libgcc_eh.a, which were compiled against the build machine's headers and which no header of ours could
// reach. CMakeLists.txt reads the names from the lines that begin with NT_FORWARD( or NT_REPLACE(.
// scripts/check-binary.mjs checks the outcome.

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include <cstdint>

// A jump to another symbol of glibc, at a given version, whatever the signature.
// clang-format off
#define NT_FORWARD(name, target, version)                  \
  asm(".symver nt_old_" #name "," #target "@" version "\n" \
      ".pushsection .text." #name ",\"ax\",@progbits\n"    \
      ".globl __wrap_" #name "\n"                          \
      ".hidden __wrap_" #name "\n"                         \
      ".type __wrap_" #name ",@function\n"                 \
      "__wrap_" #name ":\n"                                \
      "  jmp nt_old_" #name "@PLT\n"                       \
      ".size __wrap_" #name ", .-__wrap_" #name "\n"       \
      ".popsection\n");
// clang-format on

#define NT_REPLACE(name) __attribute__((visibility("hidden"))) __wrap_##name

// Moved from libpthread into libc by 2.34, under a new version.
NT_FORWARD(__pthread_key_create, __pthread_key_create, "GLIBC_2.2.5")
NT_FORWARD(pthread_attr_getstack, pthread_attr_getstack, "GLIBC_2.2.5")
NT_FORWARD(pthread_attr_setstacksize, pthread_attr_setstacksize, "GLIBC_2.2.5")
NT_FORWARD(pthread_create, pthread_create, "GLIBC_2.2.5")
NT_FORWARD(pthread_detach, pthread_detach, "GLIBC_2.2.5")
NT_FORWARD(pthread_getspecific, pthread_getspecific, "GLIBC_2.2.5")
NT_FORWARD(pthread_join, pthread_join, "GLIBC_2.2.5")
NT_FORWARD(pthread_key_create, pthread_key_create, "GLIBC_2.2.5")
NT_FORWARD(pthread_key_delete, pthread_key_delete, "GLIBC_2.2.5")
NT_FORWARD(pthread_mutex_trylock, pthread_mutex_trylock, "GLIBC_2.2.5")
NT_FORWARD(pthread_once, pthread_once, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlock_rdlock, pthread_rwlock_rdlock, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlock_unlock, pthread_rwlock_unlock, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlock_wrlock, pthread_rwlock_wrlock, "GLIBC_2.2.5")
NT_FORWARD(pthread_setaffinity_np, pthread_setaffinity_np, "GLIBC_2.3.4")
NT_FORWARD(pthread_getaffinity_np, pthread_getaffinity_np, "GLIBC_2.3.3")
NT_FORWARD(pthread_setname_np, pthread_setname_np, "GLIBC_2.12")
NT_FORWARD(pthread_sigmask, pthread_sigmask, "GLIBC_2.2.5")
NT_FORWARD(pthread_setspecific, pthread_setspecific, "GLIBC_2.2.5")
NT_FORWARD(sem_destroy, sem_destroy, "GLIBC_2.2.5")
NT_FORWARD(sem_init, sem_init, "GLIBC_2.2.5")
NT_FORWARD(sem_post, sem_post, "GLIBC_2.2.5")
NT_FORWARD(sem_wait, sem_wait, "GLIBC_2.2.5")
// The same, named by CUDA's static runtime.
NT_FORWARD(pthread_condattr_setpshared, pthread_condattr_setpshared, "GLIBC_2.2.5")
NT_FORWARD(pthread_kill, pthread_kill, "GLIBC_2.2.5")
NT_FORWARD(pthread_mutexattr_destroy, pthread_mutexattr_destroy, "GLIBC_2.2.5")
NT_FORWARD(pthread_mutexattr_init, pthread_mutexattr_init, "GLIBC_2.2.5")
NT_FORWARD(pthread_mutexattr_setpshared, pthread_mutexattr_setpshared, "GLIBC_2.2.5")
NT_FORWARD(pthread_mutexattr_settype, pthread_mutexattr_settype, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlock_destroy, pthread_rwlock_destroy, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlock_init, pthread_rwlock_init, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlock_timedrdlock, pthread_rwlock_timedrdlock, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlock_timedwrlock, pthread_rwlock_timedwrlock, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlock_tryrdlock, pthread_rwlock_tryrdlock, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlock_trywrlock, pthread_rwlock_trywrlock, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlockattr_destroy, pthread_rwlockattr_destroy, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlockattr_init, pthread_rwlockattr_init, "GLIBC_2.2.5")
NT_FORWARD(pthread_rwlockattr_setpshared, pthread_rwlockattr_setpshared, "GLIBC_2.2.5")
NT_FORWARD(pthread_spin_destroy, pthread_spin_destroy, "GLIBC_2.2.5")
NT_FORWARD(pthread_spin_init, pthread_spin_init, "GLIBC_2.2.5")
NT_FORWARD(pthread_spin_lock, pthread_spin_lock, "GLIBC_2.2.5")
NT_FORWARD(pthread_spin_trylock, pthread_spin_trylock, "GLIBC_2.2.5")
NT_FORWARD(pthread_spin_unlock, pthread_spin_unlock, "GLIBC_2.2.5")
NT_FORWARD(sem_timedwait, sem_timedwait, "GLIBC_2.2.5")
NT_FORWARD(sem_trywait, sem_trywait, "GLIBC_2.2.5")
// Moved from librt.
NT_FORWARD(shm_open, shm_open, "GLIBC_2.2.5")
NT_FORWARD(shm_unlink, shm_unlink, "GLIBC_2.2.5")
// Moved from libdl.
NT_FORWARD(dladdr, dladdr, "GLIBC_2.2.5")
NT_FORWARD(dlclose, dlclose, "GLIBC_2.2.5")
NT_FORWARD(dlerror, dlerror, "GLIBC_2.2.5")
NT_FORWARD(dlinfo, dlinfo, "GLIBC_2.3.3")
NT_FORWARD(dlmopen, dlmopen, "GLIBC_2.3.4")
NT_FORWARD(dlopen, dlopen, "GLIBC_2.2.5")
NT_FORWARD(dlsym, dlsym, "GLIBC_2.2.5")
NT_FORWARD(dlvsym, dlvsym, "GLIBC_2.2.5")
// New versions of 2.29 that differ in how they report errors alone.
NT_FORWARD(exp, exp, "GLIBC_2.2.5")
NT_FORWARD(exp2, exp2, "GLIBC_2.2.5")
NT_FORWARD(log, log, "GLIBC_2.2.5")
NT_FORWARD(log2, log2, "GLIBC_2.2.5")
NT_FORWARD(pow, pow, "GLIBC_2.2.5")
// The same of 2.38 (fmod), and C23's parsers, which differ by accepting binary literals.
NT_FORWARD(fmod, fmod, "GLIBC_2.2.5")
NT_FORWARD(fmodf, fmodf, "GLIBC_2.2.5")
NT_FORWARD(__isoc23_strtol, strtol, "GLIBC_2.2.5")
NT_FORWARD(__isoc23_strtoll, strtoll, "GLIBC_2.2.5")
NT_FORWARD(__isoc23_strtoul, strtoul, "GLIBC_2.2.5")
NT_FORWARD(__isoc23_strtoull, strtoull, "GLIBC_2.2.5")

extern "C" {

// 2.32. False at all times: the reference counts of shared_ptr are atomic then, as they were before.
extern const char NT_REPLACE(__libc_single_threaded);
const char __wrap___libc_single_threaded = 0;

// 2.36; std::random_device is what names it.
uint32_t NT_REPLACE(arc4random)();
uint32_t __wrap_arc4random() {
  uint32_t value = 0;
  while (getrandom(&value, sizeof value, 0) != sizeof value) {
  }
  return value;
}

// 2.30. Waits by the wall clock, as libstdc++ does where it has no clockwait.
int NT_REPLACE(pthread_cond_clockwait)(pthread_cond_t*, pthread_mutex_t*, clockid_t, const timespec*);
int __wrap_pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock,
                                  const timespec* until) {
  constexpr int64_t kNanoseconds = 1'000'000'000;
  timespec now{};
  timespec wall{};
  clock_gettime(clock, &now);
  clock_gettime(CLOCK_REALTIME, &wall);
  const int64_t nanoseconds = int64_t{wall.tv_nsec} + until->tv_nsec - now.tv_nsec + 2 * kNanoseconds;
  wall.tv_sec += until->tv_sec - now.tv_sec + nanoseconds / kNanoseconds - 2;
  wall.tv_nsec = nanoseconds % kNanoseconds;
  return pthread_cond_timedwait(condition, mutex, &wall);
}

// 2.33; before, <sys/stat.h> called these. 1 is the structure's version on x86-64.
int __xstat(int version, const char* path, struct stat* to);
int __lxstat(int version, const char* path, struct stat* to);
int __fxstat(int version, int descriptor, struct stat* to);
int NT_REPLACE(stat)(const char*, struct stat*);
int __wrap_stat(const char* path, struct stat* to) {
  return __xstat(1, path, to);
}
int NT_REPLACE(lstat)(const char*, struct stat*);
int __wrap_lstat(const char* path, struct stat* to) {
  return __lxstat(1, path, to);
}
int NT_REPLACE(fstat)(int, struct stat*);
int __wrap_fstat(int descriptor, struct stat* to) {
  return __fxstat(1, descriptor, to);
}
int __xstat64(int version, const char* path, struct stat64* to);
int __lxstat64(int version, const char* path, struct stat64* to);
int __fxstat64(int version, int descriptor, struct stat64* to);
int NT_REPLACE(stat64)(const char*, struct stat64*);
int __wrap_stat64(const char* path, struct stat64* to) {
  return __xstat64(1, path, to);
}
int NT_REPLACE(lstat64)(const char*, struct stat64*);
int __wrap_lstat64(const char* path, struct stat64* to) {
  return __lxstat64(1, path, to);
}
int NT_REPLACE(fstat64)(int, struct stat64*);
int __wrap_fstat64(int descriptor, struct stat64* to) {
  return __fxstat64(1, descriptor, to);
}

#ifdef DLFO_STRUCT_HAS_EH_DBASE
// 2.35: how libgcc's unwinder finds the frame table of a code address.
namespace {

struct Search {
  uintptr_t address;
  dl_find_object* found;
};

int visit(dl_phdr_info* info, size_t, void* data) {
  const auto* search = static_cast<Search*>(data);
  const ElfW(Phdr)* frames = nullptr;
  uintptr_t begin = UINTPTR_MAX;
  uintptr_t end = 0;
  bool hit = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & header = info->dlpi_phdr[i];
    const uintptr_t from = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_GNU_EH_FRAME) frames = &header;
    if (header.p_type != PT_LOAD) continue;
    hit = hit || (search->address >= from && search->address - from < header.p_memsz);
    begin = from < begin ? from : begin;
    end = from + header.p_memsz > end ? from + header.p_memsz : end;
  }
  if (!hit) return 0;
  if (frames == nullptr) return -1;
  *search->found = {};
  search->found->dlfo_map_start = reinterpret_cast<void*>(begin);
  search->found->dlfo_map_end = reinterpret_cast<void*>(end);
  search->found->dlfo_eh_frame = reinterpret_cast<void*>(info->dlpi_addr + frames->p_vaddr);
  return 1;
}

}  // namespace

int NT_REPLACE(_dl_find_object)(void*, dl_find_object*) noexcept;
int __wrap__dl_find_object(void* address, dl_find_object* found) noexcept {
  Search search{reinterpret_cast<uintptr_t>(address), found};
  return dl_iterate_phdr(visit, &search) == 1 ? 0 : -1;
}
#endif

}  // extern "C"
