// What generated loops call: elementary functions that compilers can vectorise, products and factors of matrices.
// It includes nothing: reading the headers of C++ takes compilers longer than reading many a loop.

typedef __INT32_TYPE__ int32_t;
typedef __INT64_TYPE__ int64_t;

extern "C" void* memcpy(void*, const void*, __SIZE_TYPE__);
extern "C" void* memset(void*, int, __SIZE_TYPE__);

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define M_PI 3.14159265358979323846

#define ALWAYS static inline __attribute__((always_inline))

template <typename To, typename From>
ALWAYS To z_cast_bits(From from) {
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// Where an index leads along a dimension, of which -1 is the last element; never out of the memory.
ALWAYS bool z_inside(int64_t index, int64_t size) { return -size <= index && index < size; }
ALWAYS int64_t z_place(int64_t index, int64_t size) {
  const int64_t place = index < 0 ? index + size : index;
  return place < 0 ? 0 : place >= size ? size - 1 : place;
}

template <typename T> ALWAYS void z_swap(T& a, T& b) {
  const T first = a;
  a = b;
  b = first;
}

template <typename T> ALWAYS T z_abs(T x) { return x < 0 ? -x : x; }
ALWAYS float z_abs(float x) { return __builtin_fabsf(x); }
ALWAYS double z_abs(double x) { return __builtin_fabs(x); }
template <typename T> ALWAYS T z_sign(T x) { return T(x > 0) - T(x < 0); }
// A NaN on either side is the result, as in PyTorch.
template <typename T, typename U> ALWAYS T z_max(T a, U b) { return a > T(b) || a != a ? a : T(b); }
template <typename T, typename U> ALWAYS T z_min(T a, U b) { return a < T(b) || a != a ? a : T(b); }
ALWAYS float z_sqrt(float x) { return __builtin_sqrtf(x); }
ALWAYS double z_sqrt(double x) { return __builtin_sqrt(x); }
ALWAYS float z_floor(float x) { return __builtin_floorf(x); }
ALWAYS double z_floor(double x) { return __builtin_floor(x); }
ALWAYS float z_ceil(float x) { return __builtin_ceilf(x); }
ALWAYS double z_ceil(double x) { return __builtin_ceil(x); }
ALWAYS float z_trunc(float x) { return __builtin_truncf(x); }
ALWAYS double z_trunc(double x) { return __builtin_trunc(x); }

// exp = 2^n exp(r) with |r| <= log(2) / 2, the latter by the polynomial of Moshier's Cephes library (1989).
ALWAYS float z_exp(float x) {
  float c = x > 89.0f ? 89.0f : x;
  c = c < -104.0f ? -104.0f : c;
  const float n = __builtin_rintf(c * 1.44269504088896341f);
  float r = c - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t k = (int32_t)n;
  const int32_t half = k >> 1;  // in two steps, as 2^n itself may be too large or too small for a float
  return p * z_cast_bits<float>((half + 127) << 23) * z_cast_bits<float>((k - half + 127) << 23);
}
ALWAYS double z_exp(double x) { return __builtin_exp(x); }

// log = e log(2) + log(m) with m between sqrt(1/2) and sqrt(2), the latter by Cephes's polynomial.
ALWAYS float z_log(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const float scaled = tiny ? x * 8388608.0f : x;
  const int32_t bits = z_cast_bits<int32_t>(scaled);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  const float e = (float)exponent - (tiny ? 23.0f : 0.0f);
  const float f = z_cast_bits<float>(bits - (exponent << 23)) - 1.0f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float f2 = f * f;
  float y = p * f * f2;
  y = y + e * -2.12194440e-4f;
  y = y - 0.5f * f2;
  y = f + y;
  y = y + e * 0.693359375f;
  y = x == 0.0f ? -INFINITY : y;
  y = x < 0.0f ? NAN : y;
  y = x == INFINITY ? INFINITY : y;
  return x != x ? x : y;
}
ALWAYS double z_log(double x) { return __builtin_log(x); }

// Kahan's: the rounding of 1 + x cancels.
ALWAYS float z_log1p(float x) {
  const float u = 1.0f + x;
  const float d = u - 1.0f;
  const float y = z_log(u) * (x / (d == 0.0f ? 1.0f : d));
  return d == 0.0f ? x : u == INFINITY ? u : y;
}
ALWAYS double z_log1p(double x) { return __builtin_log1p(x); }
ALWAYS float z_expm1(float x) {
  const float u = z_exp(x);
  const float d = u - 1.0f;
  const float l = z_log(u);
  const float y = d * (x / (l == 0.0f ? 1.0f : l));
  return d == 0.0f ? x : d == -1.0f ? d : u == INFINITY ? u : y;
}
ALWAYS double z_expm1(double x) { return __builtin_expm1(x); }
template <typename T> ALWAYS T z_sigmoid(T x) { return T(1) / (T(1) + z_exp(-x)); }
ALWAYS float z_tanh(float x) {
  const float t = z_expm1(-2.0f * z_abs(x));
  const float y = -t / (2.0f + t);
  return x < 0.0f ? -y : y;
}
ALWAYS double z_tanh(double x) { return __builtin_tanh(x); }

#define LIBRARY(name)                                  \
  static inline float z_##name(float x) { return __builtin_##name##f(x); } \
  static inline double z_##name(double x) { return __builtin_##name(x); }
LIBRARY(sin)
LIBRARY(cos)
LIBRARY(tan)
LIBRARY(atan)
LIBRARY(sinh)
LIBRARY(cosh)
LIBRARY(asin)
LIBRARY(acos)
LIBRARY(asinh)
LIBRARY(acosh)
LIBRARY(atanh)
LIBRARY(erf)
LIBRARY(erfc)
LIBRARY(lgamma)
static inline float z_atan2(float y, float x) { return __builtin_atan2f(y, x); }
static inline double z_atan2(double y, double x) { return __builtin_atan2(y, x); }

// By recurrence up to 6, then asymptotically (Abramowitz & Stegun 1964, 6.3.5 and 6.3.18); below zero by reflection.
static inline double z_digamma(double x) {
  if (x == 0) return -INFINITY;
  double sum = 0;
  if (x < 0) {
    if (x == __builtin_floor(x)) return NAN;
    sum = -M_PI / __builtin_tan(M_PI * x);
    x = 1 - x;
  }
  for (; x < 10; x += 1) sum -= 1 / x;
  const double s = 1 / (x * x);
  return sum + __builtin_log(x) - 0.5 / x -
         s * (1. / 12 - s * (1. / 120 - s * (1. / 252 - s * (1. / 240 - s * (1. / 132 - s * (691. / 32760))))));
}
// Likewise (6.4.6, 6.4.7 and 6.4.12 there).
static inline double z_trigamma(double x) {
  if (x < 0.5) {
    const double sine = __builtin_sin(M_PI * x);
    return M_PI * M_PI / (sine * sine) - z_trigamma(1 - x);
  }
  double sum = 0;
  for (; x < 10; x += 1) sum += 1 / (x * x);
  const double s = 1 / (x * x);
  return sum + 1 / x + s / 2 + s / x * (1. / 6 - s * (1. / 30 - s * (1. / 42 - s * (1. / 30 - s * (5. / 66)))));
}
static inline float z_trigamma(float x) { return (float)z_trigamma((double)x); }
static inline float z_digamma(float x) { return (float)z_digamma((double)x); }

template <typename T> ALWAYS T z_any_power(T x, T y) { return T(__builtin_pow(x, y)); }
ALWAYS float z_any_power(float x, float y) { return __builtin_powf(x, y); }
template <typename T> ALWAYS T z_pow(T x, T y) {
  if (__builtin_constant_p(y)) {
    if (y == T(2)) return x * x;
    if (y == T(1)) return x;
    if (y == T(0)) return T(1);
    if (y == T(3)) return x * x * x;
    if (y == T(0.5)) return z_sqrt(x);
    if (y == T(-1)) return T(1) / x;
    if (y == T(-2)) return T(1) / (x * x);
  }
  return z_any_power(x, y);
}
template <typename T> ALWAYS T z_softplus(T x, T beta, T threshold) {
  return x * beta > threshold ? x : z_log1p(z_exp(x * beta)) / beta;
}
template <typename T> ALWAYS T z_softplus_backward(T grad, T x, T beta, T threshold) {
  const T e = z_exp(x * beta);
  return x * beta > threshold ? grad : grad * e / (e + T(1));
}
template <typename T> ALWAYS T z_silu_backward(T grad, T x) {
  const T s = z_sigmoid(x);
  return grad * s * (T(1) + x * (T(1) - s));
}
template <typename T> ALWAYS T z_elu(T x, T alpha, T scale, T input_scale) {
  return x > 0 ? x * scale : z_expm1(x * input_scale) * alpha * scale;
}
template <typename T> ALWAYS T z_elu_backward(T grad, T alpha, T scale, T input_scale, T is_result, T x) {
  const T below = is_result != T(0) ? x + alpha * scale : alpha * scale * z_exp(x * input_scale);
  return x > 0 ? grad * scale : grad * input_scale * below;
}
// With the sign of the divisor, as in Python.
template <typename T> ALWAYS T z_remainder(T x, T y) { return ((x % y) + y) % y; }
ALWAYS float z_remainder(float x, float y) { return x - y * z_floor(x / y); }
ALWAYS double z_remainder(double x, double y) { return x - y * z_floor(x / y); }
template <typename T> ALWAYS T z_floor_divide(T x, T y) { return (x - z_remainder(x, y)) / y; }
ALWAYS float z_floor_divide(float x, float y) { return z_floor(x / y); }
ALWAYS double z_floor_divide(double x, double y) { return z_floor(x / y); }
template <typename T> ALWAYS T z_trunc_divide(T x, T y) { return x / y; }
ALWAYS float z_trunc_divide(float x, float y) { return z_trunc(x / y); }
ALWAYS double z_trunc_divide(double x, double y) { return z_trunc(x / y); }
template <typename T> ALWAYS T z_logaddexp(T a, T b) {
  const T top = a > b ? a : b;
  const T y = top + z_log1p(z_exp(-z_abs(a - b)));
  return z_abs(a) == INFINITY && a == b ? a : y;
}

// The vectors of the processor, and the block of the result that fits into its registers.
#if defined(__AVX512F__)
#define Z_BYTES 64
#define Z_ROWS 12
#elif defined(__AVX__)
#define Z_BYTES 32
#define Z_ROWS 6
#else
#define Z_BYTES 16
#define Z_ROWS 4
#endif
#define Z_VECTORS 2

template <typename T> struct z_vector;
template <> struct z_vector<float> {
  typedef float type __attribute__((vector_size(Z_BYTES)));
  typedef float loose __attribute__((vector_size(Z_BYTES), aligned(4), may_alias));
};
template <> struct z_vector<double> {
  typedef double type __attribute__((vector_size(Z_BYTES)));
  typedef double loose __attribute__((vector_size(Z_BYTES), aligned(8), may_alias));
};

// C[i, :] = sum_k A[i, k] panel[k, :] for ROWS rows and a panel of the width of some vectors.
template <typename T, int ROWS>
ALWAYS void z_block(int64_t K, const T* __restrict a, int64_t a_row, int64_t a_column, const T* __restrict panel,
                    T* __restrict c, int64_t c_row, int64_t width) {
  typedef typename z_vector<T>::type V;
  typedef typename z_vector<T>::loose L;
  constexpr int lanes = Z_BYTES / sizeof(T);
  V sums[ROWS][Z_VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Z_VECTORS; ++v) sums[r][v] = V{};
  for (int64_t k = 0; k < K; ++k) {
    V b[Z_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < Z_VECTORS; ++v) b[v] = *(const V*)(panel + (k * Z_VECTORS + v) * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const T x = a[r * a_row + k * a_column];
#pragma GCC unroll 4
      for (int v = 0; v < Z_VECTORS; ++v) sums[r][v] += x * b[v];
    }
  }
  if (width == Z_VECTORS * lanes) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Z_VECTORS; ++v) *(L*)(c + r * c_row + v * lanes) = sums[r][v];
  } else {
    T row[Z_VECTORS * lanes] __attribute__((aligned(64)));
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Z_VECTORS; ++v) *(V*)(row + v * lanes) = sums[r][v];
      for (int64_t j = 0; j < width; ++j) c[r * c_row + j] = row[j];
    }
  }
}

// C (M, N) = A (M, K) B (K, N). Columns of B are packed into panels, padded with zeros; PARALLEL shares panels among threads.
template <typename T, int64_t M, int64_t N, int64_t K, bool PARALLEL>
static inline void z_product(const T* __restrict a, int64_t a_row, int64_t a_column, const T* __restrict b, int64_t b_row,
                             int64_t b_column, T* __restrict c, int64_t c_row) {
  constexpr int64_t lanes = Z_BYTES / sizeof(T), width = Z_VECTORS * lanes;
  constexpr int64_t panels = (N + width - 1) / width;
#pragma omp parallel for schedule(static) if (PARALLEL)
  for (int64_t p = 0; p < panels; ++p) {
    T panel[K * width] __attribute__((aligned(64)));
    const int64_t first = p * width, filled = N - first < width ? N - first : width;
    if (filled < width) memset(panel, 0, sizeof(panel));
    if (b_column == 1) {
      for (int64_t k = 0; k < K; ++k)
        if (filled == width)
          memcpy(panel + k * width, b + k * b_row + first, width * sizeof(T));
        else
          for (int64_t j = 0; j < filled; ++j) panel[k * width + j] = b[k * b_row + first + j];
    } else {
      // In blocks of rows, so that what is written to stays in the cache.
      for (int64_t from = 0; from < K; from += lanes) {
        const int64_t to = from + lanes < K ? from + lanes : K;
        for (int64_t j = 0; j < filled; ++j)
          for (int64_t k = from; k < to; ++k) panel[k * width + j] = b[k * b_row + (first + j) * b_column];
      }
    }
    int64_t i = 0;
    for (; i + Z_ROWS <= M; i += Z_ROWS)
      z_block<T, Z_ROWS>(K, a + i * a_row, a_row, a_column, panel, c + i * c_row + first, c_row, filled);
    if constexpr (M % Z_ROWS != 0)
      z_block<T, M % Z_ROWS>(K, a + i * a_row, a_row, a_column, panel, c + i * c_row + first, c_row, filled);
  }
}

// L (N, N) with L L' = A, of which the lower triangle is read. NaN if A is not positive definite.
template <typename T, int64_t N>
ALWAYS void z_cholesky(const T* __restrict a, int64_t a_row, int64_t a_column, T* __restrict l, int64_t l_row) {
  for (int64_t i = 0; i < N; ++i) {
    T* row = l + i * l_row;
    for (int64_t j = 0; j <= i; ++j) {
      const T* above = l + j * l_row;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < j; ++k) sum += row[k] * above[k];
      sum = a[i * a_row + j * a_column] - sum;
      row[j] = j < i ? sum / above[j] : sum > 0 ? z_sqrt(sum) : T(NAN);
    }
    for (int64_t j = i + 1; j < N; ++j) row[j] = 0;
  }
}

// X (N, M) with A X = B for a lower triangular A (N, N); with UNIT its diagonal counts as ones.
template <typename T, int64_t N, int64_t M, bool UNIT>
ALWAYS void z_solve_triangular(const T* __restrict a, int64_t a_row, int64_t a_column, const T* __restrict b, int64_t b_row,
                               int64_t b_column, T* __restrict x, int64_t x_row) {
  for (int64_t i = 0; i < N; ++i)
    for (int64_t j = 0; j < M; ++j) x[i * x_row + j] = b[i * b_row + j * b_column];
  // A single column is worth walking A in the direction in which it lies in memory.
  if (M == 1 && (a_row == 1 || a_row == -1)) {
    for (int64_t k = 0; k < N; ++k) {
      if (!UNIT) x[k * x_row] /= a[k * (a_row + a_column)];
      const T known = x[k * x_row];
#pragma omp simd
      for (int64_t i = k + 1; i < N; ++i) x[i * x_row] -= a[i * a_row + k * a_column] * known;
    }
    return;
  }
  for (int64_t i = 0; i < N; ++i) {
    T* row = x + i * x_row;
    if (M == 1) {
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < i; ++k) sum += a[i * a_row + k * a_column] * x[k * x_row];
      row[0] -= sum;
    } else {
      for (int64_t k = 0; k < i; ++k) {
        const T factor = a[i * a_row + k * a_column];
        const T* known = x + k * x_row;
#pragma omp simd
        for (int64_t j = 0; j < M; ++j) row[j] -= factor * known[j];
      }
    }
    if (!UNIT)
      for (int64_t j = 0; j < M; ++j) row[j] /= a[i * (a_row + a_column)];
  }
}
