#include "runtime/ranks_on_hosts.h"

#include "graph/error.h"

namespace kumi {

int64_t ranks_a_host(const std::vector<HostRanks>& places) {
  const int64_t count = places.front().count;
  for (size_t rank = 0; rank < places.size(); ++rank) {
    if (places[rank].count != count)
      throw Error(concat("rank ", rank, " shares its machine with ", places[rank].count - 1,
                         " others, rank 0 with ", count - 1))
          .expected("as many ranks on each machine")
          .hint(
              "say so to the launcher (mpirun --map-by ppr:8:node, srun --ntasks-per-node=8), or set "
              "mesh.local");
    if (places[rank].first != static_cast<int64_t>(rank) / count * count)
      throw Error(concat("the ranks on the machine of rank ", rank, " do not follow each other"))
          .expected("ranks placed node by node")
          .hint(
              "say so to the launcher (mpirun --map-by ppr:8:node, srun --distribution=block), or set "
              "mesh.local");
  }
  return count;
}

}  // namespace kumi
