// The module's threads are never joined at the end of the process, and CUDA's runtime goes before they do. So
// they work in sections: at exit new ones do not begin, and those under way are waited for, a second at most.
#pragma once

namespace nt::runtime {

class WorkSection {
 public:
  // Does not return once the process is exiting.
  WorkSection() noexcept;
  WorkSection(const WorkSection&) = delete;
  WorkSection& operator=(const WorkSection&) = delete;
  ~WorkSection();
};

}  // namespace nt::runtime
