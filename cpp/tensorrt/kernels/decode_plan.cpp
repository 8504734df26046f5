#include "tensorrt/kernels/decode_plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace nt::kernels {

namespace {

// In tiles: what it takes to begin a chunk.
constexpr int32_t kChunkCost = 1;
// How many times as fast a warp reads where most of the others are through. Up to there a sequence that is
// longer than a worker's share costs nothing: memory is busy all the same.
constexpr int32_t kAlone = 3;
// Shorter chunks take longer to add up than to read.
constexpr int32_t kLeastTiles = 4;

int32_t ceilDiv(int32_t a, int32_t b) noexcept {
  return (a + b - 1) / b;
}

struct Sequence {
  int32_t row;
  int32_t begin;  // in tiles
  int32_t tiles;
  int32_t length;
};

class Planner {
 public:
  Planner(const DecodePlanArgs& args, DecodePlan* plan) : args_(args), plan_(*plan) {
    sequences_.clear();
    for (int32_t row = 0; row < args.rows; ++row) {
      const int32_t pages = args.kvIndptr[row + 1] - args.kvIndptr[row];
      if (pages <= 0) continue;
      const int32_t length = (pages - 1) * args.pageSize + args.lastPageLen[row];
      const int32_t first = args.window > 0 ? std::max(0, length - args.window) : 0;
      const int32_t begin = first / kDecodeTile;
      const int32_t tiles = ceilDiv(length, kDecodeTile) - begin;
      sequences_.push_back({row, begin, tiles, length});
      longest_ = std::max(longest_, tiles);
      total_ += tiles + kChunkCost;
    }
  }

  void run() {
    const auto share = static_cast<int32_t>((total_ + args_.workers - 1) / args_.workers);
    if (!cut(longest_ > kAlone * share ? limitOf(share) : longest_)) cut(longest_);
    shareOut();
    write();
  }

 private:
  struct Piece {
    int32_t tiles;
    int32_t sequence;  // in sequences_
    int32_t begin;
    int32_t worker;
    int32_t partial;  // negative: whole
  };

  // Tiles that no chunk shall exceed, where whole sequences are too long.
  int32_t limitOf(int32_t share) const {
    // Reading takes n / p of a sequence of n tiles in p chunks, adding up p: in all least for p as sqrt(n).
    // The factor was measured on an H200.
    const auto best = static_cast<int32_t>(0.45 * std::sqrt(static_cast<double>(longest_)));
    const int32_t least = std::max({kLeastTiles, best, ceilDiv(longest_, kMostPartials)});
    // As many chunks as there are workers, where there are not more sequences than that.
    int32_t limit = (kAlone - 1) * share;
    int32_t low = share;
    while (low < limit) {
      const int32_t middle = (low + limit) / 2;
      int32_t count = 0;
      for (const Sequence& sequence : sequences_) count += ceilDiv(sequence.tiles, middle);
      if (count <= args_.workers) {
        limit = middle;
      } else {
        low = middle + 1;
      }
    }
    return std::max(least, limit);
  }

  // Cuts sequences of more than `limit` tiles into pieces of about the same size; false where that makes too
  // many.
  bool cut(int32_t limit) {
    pieces_.clear();
    partials_.assign(sequences_.size(), 0);
    plan_.partials = 0;
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const Sequence& sequence = sequences_[i];
      const int32_t parts = ceilDiv(sequence.tiles, limit);
      for (int32_t part = 0; part < parts; ++part) {
        const auto at = [&](int32_t p) { return static_cast<int32_t>(int64_t{sequence.tiles} * p / parts); };
        pieces_.push_back({at(part + 1) - at(part), static_cast<int32_t>(i), sequence.begin + at(part), 0,
                           parts == 1 ? -1 : plan_.partials + part});
      }
      if (parts == 1) continue;
      partials_[i] = parts;
      plan_.partials += parts;
    }
    return plan_.partials <= args_.mostPartials;
  }

  // Longest first, each to the worker that is through first.
  void shareOut() {
    // Stable, so that a plan depends on nothing but its arguments.
    std::stable_sort(pieces_.begin(), pieces_.end(),
                     [](const Piece& a, const Piece& b) { return a.tiles > b.tiles; });
    heap_.clear();
    for (int32_t w = 0; w < args_.workers; ++w) heap_.emplace_back(0, w);
    const auto later = [](const std::pair<int32_t, int32_t>& a, const std::pair<int32_t, int32_t>& b) {
      return a > b;
    };
    for (Piece& piece : pieces_) {
      std::pop_heap(heap_.begin(), heap_.end(), later);
      auto& [load, worker] = heap_.back();
      piece.worker = worker;
      load += piece.tiles + kChunkCost;
      std::push_heap(heap_.begin(), heap_.end(), later);
    }
  }

  void write() {
    plan_.begins.assign(static_cast<size_t>(args_.workers) + 1, 0);
    for (const Piece& piece : pieces_) ++plan_.begins[static_cast<size_t>(piece.worker) + 1];
    for (size_t w = 1; w < plan_.begins.size(); ++w) plan_.begins[w] += plan_.begins[w - 1];
    plan_.chunks.resize(pieces_.size());
    at_.assign(plan_.begins.begin(), plan_.begins.end() - 1);
    firstPartials_.assign(sequences_.size(), 0);
    int32_t partials = 0;
    for (size_t i = 0; i < sequences_.size(); ++i) {
      firstPartials_[i] = partials;
      partials += partials_[i];
    }
    for (const Piece& piece : pieces_) {
      const auto i = static_cast<size_t>(piece.sequence);
      const Sequence& sequence = sequences_[i];
      DecodeChunk& chunk = plan_.chunks[static_cast<size_t>(at_[static_cast<size_t>(piece.worker)]++)];
      chunk.row = sequence.row;
      chunk.begin = piece.begin;
      chunk.end = piece.begin + piece.tiles;
      chunk.partial = piece.partial;
      chunk.length = sequence.length;
      chunk.firstPage = args_.kvIndptr[sequence.row];
      chunk.firstPartial = firstPartials_[i];
      chunk.partials = partials_[i];
    }
  }

  const DecodePlanArgs& args_;
  DecodePlan& plan_;
  int32_t longest_ = 0;
  int64_t total_ = 0;

  // Kept from step to step.
  static thread_local std::vector<Sequence> sequences_;
  static thread_local std::vector<Piece> pieces_;
  static thread_local std::vector<int32_t> partials_;  // by sequence; 0: whole
  static thread_local std::vector<std::pair<int32_t, int32_t>> heap_;
  static thread_local std::vector<int32_t> firstPartials_, at_;
};

thread_local std::vector<Sequence> Planner::sequences_;
thread_local std::vector<Planner::Piece> Planner::pieces_;
thread_local std::vector<int32_t> Planner::partials_;
thread_local std::vector<std::pair<int32_t, int32_t>> Planner::heap_;
thread_local std::vector<int32_t> Planner::firstPartials_, Planner::at_;

}  // namespace

int32_t mostDecodeChunks(int32_t rows, int32_t workers) noexcept {
  // Of a cut sequence all pieces but the last have more than half of the limit, which is no less than a
  // share.
  return rows + 2 * workers;
}

void planDecodeChunks(const DecodePlanArgs& args, DecodePlan* plan) {
  Planner(args, plan).run();
}

}  // namespace nt::kernels
