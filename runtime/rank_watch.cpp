#include "runtime/rank_watch.h"

#include <algorithm>
#include <sstream>

namespace kumi {
namespace {

// The first letter of a note.
constexpr char kAsks = '?', kAnswers = '=', kAborts = '!';

// After which a rank ends without having told the others why.
constexpr std::chrono::seconds kPatience{1};

constexpr size_t kRanksNamed = 4;

const char* verb(const std::vector<int64_t>& ranks, const char* of_one, const char* of_several) {
  return ranks.size() == 1 ? of_one : of_several;
}

}  // namespace

std::string ranks_text(const std::vector<int64_t>& ranks) {
  // "1 others" is never said: a list that is one longer is written out.
  const size_t named = ranks.size() <= kRanksNamed + 1 ? ranks.size() : kRanksNamed;
  std::ostringstream text;
  text << (ranks.size() == 1 ? "rank " : "ranks ");
  for (size_t i = 0; i < named; ++i) {
    const bool is_last = i + 1 == ranks.size();
    text << (i == 0 ? "" : is_last ? " and " : ", ") << ranks[i];
  }
  if (named < ranks.size()) text << " and " << ranks.size() - named << " others";
  return text.str();
}

RankWatch::RankWatch(Transport& transport)
    : transport_(transport), answers_(static_cast<size_t>(transport.ranks())) {}

void RankWatch::begin(const std::string& what) {
  own_.number += 1;
  own_.is_waiting = true;
  own_.what = what;
}

void RankWatch::attend() {
  while (!ended_) {
    const std::optional<Note> note = transport_.take_note();
    if (!note) break;
    take(*note);
  }
  tell_abort();
  if (ended_) throw Error(*ended_);
}

void RankWatch::ask() {
  std::fill(answers_.begin(), answers_.end(), std::nullopt);
  answers_[static_cast<size_t>(transport_.rank())] = own_;
  for (int64_t peer = 0; peer < transport_.ranks(); ++peer)
    if (peer != transport_.rank()) send_status(peer, kAsks);
}

bool RankWatch::all_have_answered() const {
  return std::all_of(answers_.begin(), answers_.end(), [](const auto& answer) { return answer.has_value(); });
}

void RankWatch::send_status(int64_t peer, char kind) {
  transport_.send_note(peer, concat(kind, own_.number, ' ', own_.is_waiting, ' ', own_.what));
}

void RankWatch::take(const Note& note) {
  if (note.text.empty()) return;
  const char kind = note.text[0];
  if (kind == kAborts) {
    ended_ = Error(concat("rank ", note.sender, " has ended the job: ", note.text.substr(1)));
    return;
  }
  Status status;
  std::istringstream in(note.text.substr(1));
  if (!(in >> status.number >> status.is_waiting)) return;
  in.ignore();
  std::getline(in, status.what);
  answers_[static_cast<size_t>(note.sender)] = status;
  if (kind == kAsks) send_status(note.sender, kAnswers);
}

void RankWatch::abort(const std::string& reason) {
  std::unique_lock lock(mutex_);
  if (!reason_) reason_ = reason;
  told_.wait_for(lock, kPatience, [&] { return has_told_; });
}

void RankWatch::tell_abort() {
  const std::lock_guard lock(mutex_);
  if (!reason_ || has_told_) return;
  for (int64_t peer = 0; peer < transport_.ranks() && !ended_; ++peer)
    if (peer != transport_.rank()) transport_.send_note(peer, kAborts + *reason_);
  if (!ended_) ended_ = Error("this rank has ended the job");
  has_told_ = true;
  told_.notify_all();
}

Error RankWatch::verdict(double seconds, const std::vector<int64_t>& missing) const {
  std::vector<int64_t> silent, apart, late;
  for (int64_t rank = 0; rank < transport_.ranks(); ++rank) {
    const std::optional<Status>& answer = answers_[static_cast<size_t>(rank)];
    if (!answer)
      silent.push_back(rank);
    else if (!answer->is_waiting && answer->number < own_.number)
      late.push_back(rank);
    else if (answer->is_waiting && answer->number == own_.number && answer->what != own_.what)
      apart.push_back(rank);
  }
  const auto status_of = [&](int64_t rank) -> const Status& { return *answers_[static_cast<size_t>(rank)]; };
  std::vector<std::string> blames;
  std::string hint;
  const auto blame = [&](const std::string& what, const char* what_to_do) {
    blames.push_back(what);
    if (hint.empty()) hint = what_to_do;
  };
  if (!silent.empty())
    blame(concat(ranks_text(silent), verb(silent, " does", " do"), " not answer"),
          "it has died or is stopped, or its machine cannot be reached; mesh.timeout is the limit");
  if (!apart.empty())
    blame(concat(ranks_text(apart), verb(apart, " waits", " wait"), " in another collective, ",
                 status_of(apart[0]).what),
          "the ranks run different graphs: start all with the same kumi and the same recipe");
  if (!late.empty()) {
    const int64_t last = *std::min_element(late.begin(), late.end(), [&](int64_t a, int64_t b) {
      return status_of(a).number < status_of(b).number;
    });
    const Status& status = status_of(last);
    const int64_t behind = own_.number - status.number;
    blame(concat(late.size() == 1 ? "" : ranks_text(late) + " have not come; ", "rank ", last, " is ", behind,
                 behind == 1 ? " collective" : " collectives", " behind, and has started none",
                 status.what.empty() ? "" : " since " + status.what),
          "it answers, but computes, reads or hangs; if it is only slow, raise mesh.timeout");
  }
  const std::string waited = concat("rank ", transport_.rank(), " has waited ", seconds, " s in ", own_.what);
  if (blames.empty())
    return Error(concat(waited, " for ", ranks_text(missing), "; all ranks answer and none is late"))
        .hint("the network between them is too slow, or loses messages; mesh.timeout is the limit");
  return Error(concat(joined(blames), ": ", waited)).hint(hint);
}

}  // namespace kumi
