// Sizes of tensors: integers, and polynomials over sizes that are not known yet.
//
// A model is written with free sizes (batch, seq); the parameters of the model (hidden, heads) are
// numbers when it is elaborated. A Dim is a polynomial over the free sizes with integer
// coefficients, in canonical form, so that equality of shapes is decided symbolically. After the
// `infer` pass every Dim is a number. A Dim also remembers the name under which the source wrote
// it ("hidden", "hidden/heads"), for messages and dumps; names take no part in comparisons.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace kumi {

class Dim {
 public:
  struct Term {
    std::vector<std::string> symbols;  // sorted, with repeats for powers
    int64_t coefficient = 0;           // never 0

    bool operator==(const Term&) const = default;
  };

  Dim() = default;
  Dim(int64_t value) : constant_(value) {}  // NOLINT: sizes are written as plain numbers
  Dim(int value) : constant_(value) {}      // NOLINT
  static Dim symbol(const std::string& name);
  static Dim named(std::string name, Dim value);

  bool is_number() const { return terms_.empty(); }
  // The polynomial's parts: sorted terms with symbols, and the term without.
  const std::vector<Term>& terms() const { return terms_; }
  int64_t constant() const { return constant_; }
  // The number; throws Error naming the free size if there is one.
  int64_t number() const;
  bool operator==(const Dim& other) const;  // of the polynomial, not the name

  // Exact arithmetic; overflow of 64 bits throws Error.
  friend Dim operator+(const Dim& a, const Dim& b);
  friend Dim operator-(const Dim& a, const Dim& b);
  friend Dim operator*(const Dim& a, const Dim& b);
  // a / b if it is exact for every value of the free sizes (b a number or a monomial), else nothing.
  static std::optional<Dim> divide_exact(const Dim& a, const Dim& b);

  // Replaces free sizes by numbers where `sizes` has them. The result keeps the name; a Dim without
  // a name that was written with symbols gets its symbolic spelling as name: batch -> batch=2.
  Dim substitute(const std::map<std::string, int64_t>& sizes) const;
  void collect_symbols(std::vector<std::string>* symbols) const;  // appended, without repeats

  const std::string& name() const { return name_; }
  Dim without_name() const;
  // The polynomial: "5120", "batch", "2*batch*seq + 1".
  std::string polynomial() const;
  // For dumps, exact: "hidden=5120" or the polynomial.
  std::string to_string() const;
  // For messages: "hidden (5120)" or the polynomial.
  std::string display() const;

 private:
  static Dim from_terms(std::vector<Term> terms);
  std::vector<Term> all_terms() const;

  int64_t constant_ = 0;
  std::vector<Term> terms_;  // sorted by symbols; without the constant
  std::string name_;
};

// A name for a composed size: compose_name(hidden, '/', heads) = "hidden/heads". Empty if neither has one.
std::string compose_name(const Dim& a, char op, const Dim& b);

}  // namespace kumi
