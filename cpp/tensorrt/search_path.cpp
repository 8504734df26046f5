#include "tensorrt/search_path.h"

#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstring>

namespace nt {

namespace {

// An ELF file of one writable segment: headers, one (null) symbol with its hash table, the dynamic section;
// strings follow.
struct Image {
  Elf64_Ehdr header;
  std::array<Elf64_Phdr, 3> segments;
  Elf64_Sym symbol;
  std::array<Elf64_Word, 4> hash;  // one bucket, one chain entry, both empty
  std::array<Elf64_Dyn, 8> dynamic;
};

std::string makeImage(const std::string& folder, const std::string& name) {
  std::string strings(1, '\0');
  const auto add = [&](const std::string& text) {
    const Elf64_Xword at = strings.size();
    strings += text;
    strings += '\0';
    return at;
  };
  const Elf64_Xword nameAt = add(name);
  const Elf64_Xword folderAt = add(folder);
  const Elf64_Xword bytes = sizeof(Image) + strings.size();

  Image image{};
  Elf64_Ehdr& header = image.header;
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_DYN;
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_phoff = offsetof(Image, segments);
  header.e_ehsize = sizeof(Elf64_Ehdr);
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = static_cast<Elf64_Half>(image.segments.size());
  // The loader writes to the dynamic section, hence a writable segment.
  image.segments[0] = {PT_LOAD, PF_R | PF_W, 0, 0, 0, bytes, bytes, 4096};
  image.segments[1] = {PT_DYNAMIC,
                       PF_R | PF_W,
                       offsetof(Image, dynamic),
                       offsetof(Image, dynamic),
                       offsetof(Image, dynamic),
                       sizeof image.dynamic,
                       sizeof image.dynamic,
                       8};
  // Without this one the loader would make the stack executable.
  image.segments[2] = {PT_GNU_STACK, PF_R | PF_W, 0, 0, 0, 0, 0, 16};
  image.hash = {1, 1, 0, 0};
  const auto entry = [](Elf64_Sxword tag, Elf64_Xword value) { return Elf64_Dyn{tag, {value}}; };
  image.dynamic = {entry(DT_NEEDED, nameAt),
                   entry(DT_RUNPATH, folderAt),
                   entry(DT_HASH, offsetof(Image, hash)),
                   entry(DT_SYMTAB, offsetof(Image, symbol)),
                   entry(DT_SYMENT, sizeof(Elf64_Sym)),
                   entry(DT_STRTAB, sizeof(Image)),
                   entry(DT_STRSZ, strings.size()),
                   entry(DT_NULL, 0)};
  std::string file(reinterpret_cast<const char*>(&image), sizeof image);
  return file + strings;
}

}  // namespace

std::string loadByName(const std::string& folder, const std::string& name) {
  const std::string image = makeImage(folder, name);
  const int file = memfd_create("nt-search-path", MFD_CLOEXEC);
  if (file < 0) return "no memory file";
  std::string error;
  if (write(file, image.data(), image.size()) != static_cast<ssize_t>(image.size())) {
    error = "the memory file could not be written";
  } else if (dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(),
                    RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE) == nullptr) {
    error = dlerror();
  }
  // Where it is loaded it stays open: the loader takes the next file of that number for the same library.
  if (!error.empty()) close(file);
  return error;
}

}  // namespace nt
