// The backward pass of attention on a CPU in bf16; cpu_attention.py says what for. It follows FlashAttention-2 (Dao, arXiv
// 2307.08691, algorithm 2): probabilities are made again from the logarithm of their sum that the forward pass kept, a
// block of keys at a time. Matrix products are oneDNN's (AMX or AVX-512 BF16 units, sums in float32), by way of torch.
//
// Scores are computed transposed, keys x queries. Their gradient is then already the left operand of the products that
// give the gradients of keys and values, which a block of keys completes; only that of queries is a sum over blocks.
//
// Shapes: B rows, H heads, T tokens, D channels of a head, M keys of a block. A product's right operand (n x m) is
// packed in pairs of rows, (n/2, m, 2), as the units take it.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

namespace {

using at::BFloat16;
using at::Tensor;
using at::native::cpublas::brgemm;

constexpr int64_t kLanes = 16;            // numbers of a vector
constexpr int64_t kMostKeys = 128;        // of a block
constexpr int64_t kMostScores = 1 << 16;  // of a block: what is kept of them, 14 bytes each, fits a core's cache

template <typename Number>
struct Rows {  // of a matrix, `stride` numbers apart
  Number* data;
  int64_t stride;

  Rows from(int64_t row) const { return {data + row * stride, stride}; }
};

// One head's (T, D) of (B, H, T, D), whose last dimension is dense.
Rows<const BFloat16> of_head(const Tensor& tensor, int64_t row, int64_t head) {
  const auto* data = tensor.const_data_ptr<BFloat16>();
  return {data + row * tensor.stride(0) + head * tensor.stride(1), tensor.stride(2)};
}

Rows<BFloat16> into_head(const Tensor& tensor, int64_t row, int64_t head) {
  return {tensor.mutable_data_ptr<BFloat16>() + row * tensor.stride(0) + head * tensor.stride(1), tensor.stride(2)};
}

Tensor dense_in_channels(const Tensor& tensor) {
  const bool fits = tensor.stride(3) == 1 && tensor.stride(2) % 2 == 0;
  return fits ? tensor : tensor.contiguous();
}

__m512 load(const BFloat16* from) {
  const auto halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

__m256i rounded(__m512 numbers) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(numbers)); }

void store(BFloat16* to, __m256i halves) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves); }

// Two rows side by side, as a packed right operand holds them.
void store_pairs(BFloat16* to, __m256i first, __m256i second) {
  const auto high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16);
  _mm512_storeu_si512(to, _mm512_or_si512(_mm512_cvtepu16_epi32(first), high));
}

// (rows x columns) of 32-bit words to (columns x rows). Of pairs of bf16: a matrix to its packed transpose.
void transpose_words(const void* from, int64_t stride, int64_t rows, int64_t columns, void* to) {
  const auto* in = static_cast<const float*>(from);
  auto* out = static_cast<float*>(to);
  for (int64_t row = 0; row < rows; row += kLanes)
    for (int64_t column = 0; column < columns; column += kLanes)
      at::vec::transpose_mxn<float, kLanes, kLanes>(in + row * stride + column, stride, out + column * rows + row, rows);
}

void transpose(Rows<const BFloat16> from, int64_t rows, int64_t columns, BFloat16* to) {
  for (int64_t row = 0; row < rows; row += kLanes)
    for (int64_t column = 0; column < columns; column += kLanes)
      at::vec::transpose_mxn<BFloat16, kLanes, kLanes>(
          from.data + row * from.stride + column, from.stride, to + column * rows + row, rows);
}

void pack(Rows<const BFloat16> from, int64_t rows, int64_t columns, BFloat16* to) {
  for (int64_t row = 0; row < rows; row += 2)
    for (int64_t column = 0; column < columns; column += kLanes) {
      const auto* first = from.data + row * from.stride + column;
      store_pairs(to + row * columns + 2 * column, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)),
                  _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first + from.stride)));
    }
}

void round_into(Rows<BFloat16> to, const float* from, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; row++)
    for (int64_t column = 0; column < columns; column += kLanes)
      store(to.data + row * to.stride + column, rounded(_mm512_loadu_ps(from + row * columns + column)));
}

// What a thread works in, of one head (T, D) and of one block (M, T).
struct Workspace {
  Workspace(int64_t T, int64_t D, int64_t M)
      : halves(at::empty({T * D * 5 + M * T * 3}, at::kBFloat16)),
        floats(at::empty({T * D * 2 + M * T * 2 + M * D + T}, at::kFloat)) {
    auto* half = halves.mutable_data_ptr<BFloat16>();
    for (auto** each : {&query_transposed, &given_transposed, &query_packed, &given_packed, &key_transposed})
      *each = std::exchange(half, half + T * D);
    for (auto** each : {&probability, &score_gradient, &score_gradient_packed}) *each = std::exchange(half, half + M * T);
    auto* next = floats.mutable_data_ptr<float>();
    for (auto** each : {&query_gradient_transposed, &query_gradient}) *each = std::exchange(next, next + T * D);
    for (auto** each : {&score, &probability_gradient}) *each = std::exchange(next, next + M * T);
    block_gradient = std::exchange(next, next + M * D);
    given_by_out = next;
  }

  BFloat16 *query_transposed, *given_transposed;                      // packed (D/2, T, 2)
  BFloat16 *query_packed, *given_packed;                              // (T/2, D, 2)
  BFloat16* key_transposed;                                           // (D, T)
  BFloat16 *probability, *score_gradient, *score_gradient_packed;     // (M, T), (M, T), (M/2, T, 2)
  float *query_gradient_transposed, *query_gradient;                  // (D, T), (T, D)
  float *score, *probability_gradient, *block_gradient, *given_by_out;  // (M, T), (M, T), (M, D), (T)

 private:
  Tensor halves, floats;
};

// given_by_out[t]: the product of a token's output and the gradient of it, which softmax's gradient takes off.
void multiply_rows(
    Rows<const BFloat16> given, Rows<const BFloat16> out, int64_t T, int64_t D, float* given_by_out) {
  for (int64_t token = 0; token < T; token++) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t channel = 0; channel < D; channel += kLanes)
      sum = _mm512_fmadd_ps(
          load(given.data + token * given.stride + channel), load(out.data + token * out.stride + channel), sum);
    given_by_out[token] = _mm512_reduce_add_ps(sum);
  }
}

// Probabilities and the gradient of scores (M, T) from scores and the gradient of probabilities. `mask`, added to
// scores, is (M, T) too, or null; `log_sum` (T) is the forward pass's.
void softmax_gradient(const Workspace& work, int64_t M, int64_t T, const BFloat16* mask, const float* log_sum, float scale) {
  const __m512 scales = _mm512_set1_ps(scale);
  for (int64_t row = 0; row < M; row += 2)
    for (int64_t token = 0; token < T; token += kLanes) {
      __m256i gradient[2];
      for (int64_t each = 0; each < 2; each++) {
        const int64_t at = (row + each) * T + token;
        __m512 taken_off = _mm512_loadu_ps(log_sum + token);
        if (mask) taken_off = _mm512_sub_ps(taken_off, load(mask + at));
        const __m512 exponent = _mm512_fmsub_ps(_mm512_loadu_ps(work.score + at), scales, taken_off);
        const __m512 probability = at::vec::Vectorized<float>(exponent).fexp_u20();
        const __m512 gap =
            _mm512_sub_ps(_mm512_loadu_ps(work.probability_gradient + at), _mm512_loadu_ps(work.given_by_out + token));
        gradient[each] = rounded(_mm512_mul_ps(_mm512_mul_ps(probability, scales), gap));
        store(work.probability + at, rounded(probability));
        store(work.score_gradient + at, gradient[each]);
      }
      store_pairs(work.score_gradient_packed + row * T + 2 * token, gradient[0], gradient[1]);
    }
}

int64_t keys_of_block(int64_t T) {  // the last block may have fewer
  return std::max(kLanes, std::min({T, kMostKeys, kMostScores / T}) / kLanes * kLanes);
}

// Gradients of query, key and value, all (B, H, T, D) in bf16 with T a multiple of 16 and D of 32, from that of the
// output. `log_sum` (B, H, T) is float32; `mask` (B or 1, H or 1, T, T) in bf16 was added to the scaled scores. It may
// hide by bf16's lowest number or by -inf, but no token's whole row (here each token sees itself).
std::tuple<Tensor, Tensor, Tensor> gradient(
    const Tensor& given_, const Tensor& query_, const Tensor& key_, const Tensor& value_, const Tensor& out_,
    const Tensor& log_sum_, const std::optional<Tensor>& mask_, double scale) {
  const int64_t B = query_.size(0), H = query_.size(1), T = query_.size(2), D = query_.size(3);
  TORCH_CHECK(T > 0 && T % kLanes == 0 && D % (2 * kLanes) == 0, "rows of ", T, " tokens, heads of ", D);
  for (const auto* each : {&given_, &key_, &value_, &out_})
    TORCH_CHECK(each->sizes() == query_.sizes(), "query of ", query_.sizes(), " beside ", each->sizes());
  TORCH_CHECK(log_sum_.sizes() == at::IntArrayRef({B, H, T}), "sums of ", log_sum_.sizes());
  TORCH_CHECK(!mask_ || (mask_->dim() == 4 && mask_->size(2) == T && mask_->size(3) == T), "a mask of another size");
  const Tensor given = dense_in_channels(given_), query = dense_in_channels(query_), key = dense_in_channels(key_);
  const Tensor value = dense_in_channels(value_), out = dense_in_channels(out_), log_sum = log_sum_.contiguous();
  Tensor mask;  // keys x queries
  if (mask_) mask = mask_->transpose(2, 3).contiguous().expand({B, H, T, T});
  const auto like_projections = [&] { return at::empty({B, T, H, D}, query.options()).transpose(1, 2); };
  Tensor query_gradient = like_projections(), key_gradient = like_projections(), value_gradient = like_projections();
  const int64_t M = keys_of_block(T);
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
    const Workspace work(T, D, M);
    for (int64_t which = begin; which < end; which++) {
      const int64_t row = which / H, head = which % H;
      const auto q = of_head(query, row, head), k = of_head(key, row, head), v = of_head(value, row, head);
      const auto dout = of_head(given, row, head);
      transpose_words(q.data, q.stride / 2, T, D / 2, work.query_transposed);
      transpose_words(dout.data, dout.stride / 2, T, D / 2, work.given_transposed);
      transpose(k, T, D, work.key_transposed);
      pack(q, T, D, work.query_packed);
      pack(dout, T, D, work.given_packed);
      multiply_rows(dout, of_head(out, row, head), T, D, work.given_by_out);
      const auto dk = into_head(key_gradient, row, head), dv = into_head(value_gradient, row, head);
      const auto* log_sums = log_sum.const_data_ptr<float>() + which * T;
      const BFloat16* masked = mask_ ? of_head(mask, row, head).data : nullptr;
      for (int64_t first = 0; first < T; first += M) {
        const int64_t keys = std::min(M, T - first);
        brgemm(keys, T, D, k.stride, T, T, false, k.from(first).data, work.query_transposed, work.score);
        brgemm(keys, T, D, v.stride, T, T, false, v.from(first).data, work.given_transposed, work.probability_gradient);
        softmax_gradient(work, keys, T, masked ? masked + first * T : nullptr, log_sums, static_cast<float>(scale));
        brgemm(keys, D, T, T, D, D, false, work.probability, work.given_packed, work.block_gradient);
        round_into(dv.from(first), work.block_gradient, keys, D);
        brgemm(keys, D, T, T, D, D, false, work.score_gradient, work.query_packed, work.block_gradient);
        round_into(dk.from(first), work.block_gradient, keys, D);
        brgemm(D, T, keys, T, T, T, first > 0, work.key_transposed + first, work.score_gradient_packed,
               work.query_gradient_transposed);
      }
      transpose_words(work.query_gradient_transposed, T, D, T, work.query_gradient);
      round_into(into_head(query_gradient, row, head), work.query_gradient, T, D);
    }
    at::native::cpublas::brgemm_release();
  });
  return {query_gradient, key_gradient, value_gradient};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fast_electra, library) {
  library.def(
      "attention_gradient(Tensor given, Tensor query, Tensor key, Tensor value, Tensor out, Tensor log_sum, "
      "Tensor? mask, float scale) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fast_electra, CPU, library) { library.impl("attention_gradient", gradient); }
