#include "graph/dim.h"

#include <algorithm>

#include "graph/error.h"

namespace kumi {
namespace {

[[noreturn]] void overflow() {
  throw Error("a size is too large: it does not fit into 64 bits");
}

int64_t checked_add(int64_t a, int64_t b) {
  int64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) overflow();
  return sum;
}

int64_t checked_multiply(int64_t a, int64_t b) {
  int64_t product;
  if (__builtin_mul_overflow(a, b, &product)) overflow();
  return product;
}

}  // namespace

Dim Dim::symbol(const std::string& name) {
  Dim dim;
  dim.terms_.push_back({{name}, 1});
  return dim;
}

Dim Dim::named(std::string name, Dim value) {
  value.name_ = std::move(name);
  return value;
}

int64_t Dim::number() const {
  if (!is_number())
    throw Error(concat("the size ", polynomial(), " is not known yet"))
        .hint(concat("give it a value, e.g. --set model.", terms_[0].symbols[0], "=8"));
  return constant_;
}

bool Dim::operator==(const Dim& other) const {
  return constant_ == other.constant_ && terms_ == other.terms_;
}

std::vector<Dim::Term> Dim::all_terms() const {
  std::vector<Term> terms = terms_;
  if (constant_ != 0) terms.push_back({{}, constant_});
  return terms;
}

Dim Dim::from_terms(std::vector<Term> terms) {
  std::sort(terms.begin(), terms.end(), [](const Term& a, const Term& b) { return a.symbols < b.symbols; });
  Dim dim;
  for (Term& term : terms) {
    if (term.symbols.empty())
      dim.constant_ = checked_add(dim.constant_, term.coefficient);
    else if (!dim.terms_.empty() && dim.terms_.back().symbols == term.symbols)
      dim.terms_.back().coefficient = checked_add(dim.terms_.back().coefficient, term.coefficient);
    else
      dim.terms_.push_back(std::move(term));
  }
  std::erase_if(dim.terms_, [](const Term& term) { return term.coefficient == 0; });
  return dim;
}

Dim operator+(const Dim& a, const Dim& b) {
  if (a.is_number() && b.is_number()) return Dim(checked_add(a.constant_, b.constant_));
  std::vector<Dim::Term> terms = a.all_terms();
  for (Dim::Term& term : b.all_terms()) terms.push_back(std::move(term));
  return Dim::from_terms(std::move(terms));
}

Dim operator-(const Dim& a, const Dim& b) {
  return a + Dim(-1) * b;
}

Dim operator*(const Dim& a, const Dim& b) {
  if (a.is_number() && b.is_number()) return Dim(checked_multiply(a.constant_, b.constant_));
  std::vector<Dim::Term> terms;
  for (const Dim::Term& x : a.all_terms())
    for (const Dim::Term& y : b.all_terms()) {
      Dim::Term term;
      term.coefficient = checked_multiply(x.coefficient, y.coefficient);
      std::merge(x.symbols.begin(), x.symbols.end(), y.symbols.begin(), y.symbols.end(),
                 std::back_inserter(term.symbols));
      terms.push_back(std::move(term));
    }
  return Dim::from_terms(std::move(terms));
}

std::optional<Dim> Dim::divide_exact(const Dim& a, const Dim& b) {
  std::vector<Term> divisor = b.all_terms();
  if (divisor.size() != 1) {
    if (divisor.empty()) return std::nullopt;
    return a == b ? std::optional<Dim>(Dim(1)) : std::nullopt;
  }
  std::vector<Term> terms = a.all_terms();
  for (Term& term : terms) {
    if (divisor[0].coefficient == -1)
      term.coefficient = checked_multiply(term.coefficient, -1);
    else if (term.coefficient % divisor[0].coefficient != 0)
      return std::nullopt;
    else
      term.coefficient /= divisor[0].coefficient;
    std::vector<std::string> rest;
    const std::vector<std::string>& remove = divisor[0].symbols;
    if (!std::includes(term.symbols.begin(), term.symbols.end(), remove.begin(), remove.end()))
      return std::nullopt;
    std::set_difference(term.symbols.begin(), term.symbols.end(), remove.begin(), remove.end(),
                        std::back_inserter(rest));
    term.symbols = std::move(rest);
  }
  return from_terms(std::move(terms));
}

Dim Dim::substitute(const std::map<std::string, int64_t>& sizes) const {
  if (is_number()) return *this;
  Dim sum;
  bool changed = false;
  for (const Term& term : all_terms()) {
    Dim product(term.coefficient);
    for (const std::string& symbol : term.symbols) {
      auto found = sizes.find(symbol);
      changed |= found != sizes.end();
      product = product * (found == sizes.end() ? Dim::symbol(symbol) : Dim(found->second));
    }
    sum = sum + product;
  }
  sum.name_ = name_;
  if (name_.empty() && changed) {
    std::string spelling = polynomial();
    std::erase(spelling, ' ');
    sum.name_ = spelling;
  }
  return sum;
}

void Dim::collect_symbols(std::vector<std::string>* symbols) const {
  for (const Term& term : terms_)
    for (const std::string& symbol : term.symbols)
      if (std::find(symbols->begin(), symbols->end(), symbol) == symbols->end()) symbols->push_back(symbol);
}

Dim Dim::without_name() const {
  Dim dim = *this;
  dim.name_.clear();
  return dim;
}

std::string Dim::polynomial() const {
  if (is_number()) return std::to_string(constant_);
  std::string text;
  auto append = [&text](int64_t coefficient, const std::string& rest) {
    bool negative = coefficient < 0;
    std::string magnitude = std::to_string(coefficient);
    if (negative) magnitude.erase(0, 1);
    if (!text.empty())
      text += negative ? " - " : " + ";
    else if (negative)
      text += "-";
    if (rest.empty())
      text += magnitude;
    else
      text += magnitude == "1" ? rest : magnitude + "*" + rest;
  };
  for (const Term& term : terms_) {
    std::string product;
    for (const std::string& symbol : term.symbols) product += (product.empty() ? "" : "*") + symbol;
    append(term.coefficient, product);
  }
  if (constant_ != 0) append(constant_, "");
  return text;
}

std::string Dim::to_string() const {
  return name_.empty() ? polynomial() : name_ + "=" + polynomial();
}

std::string Dim::display() const {
  return name_.empty() ? polynomial() : name_ + " (" + polynomial() + ")";
}

std::string compose_name(const Dim& a, char op, const Dim& b) {
  if (a.name().empty() && b.name().empty()) return "";
  auto spelled = [](const Dim& dim) {
    std::string text = dim.name().empty() ? dim.polynomial() : dim.name();
    std::erase(text, ' ');
    return text.find_first_of("+-*/") == std::string::npos ? text : "(" + text + ")";
  };
  constexpr size_t kLongestName = 40;  // a longer one says less than the number
  std::string name = spelled(a) + op + spelled(b);
  return name.size() <= kLongestName ? name : "";
}

}  // namespace kumi
