/* What is between the matrix products of a decode step, for a CPU: plain C, called through ctypes, so the GIL is free
 * while it runs. The compiler makes vector code of the loops. Arguments are checked by the caller (kernels.py).
 *
 * Attention over blocks follows PagedAttention (Kwon et al., SOSP 2023). */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#define THREAD() omp_get_thread_num()
#else
#define THREAD() 0
#endif

/* The caller refuses larger ones. */
#define MAX_HEAD_DIM 512

/* What the code was compiled for; the caller compares it with the CPU before anything else here runs. */
#if defined(__AVX512F__)
static const char isa[] = "avx512f";
#elif defined(__AVX2__)
static const char isa[] = "avx2";
#else
static const char isa[] = "";
#endif

const char *stagemesh_isa(void) { return isa; }
int stagemesh_max_head_dim(void) { return MAX_HEAD_DIM; }

static inline float bf16_load(uint16_t v) {
    union { uint32_t bits; float value; } u = {(uint32_t)v << 16};
    return u.value;
}

static inline uint16_t bf16_store(float v) {
    union { float value; uint32_t bits; } u = {v};
    /* Round to the nearest, ties to even; a NaN stays one. */
    const uint32_t rounded = (u.bits + 0x7FFF + ((u.bits >> 16) & 1)) >> 16;
    return (u.bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : (uint16_t)rounded;
}

/* e^x to about 1e-7 of its value, in a form that becomes vector code: 2^n times a polynomial on [-ln2/2, ln2/2]
 * (the coefficients are Taylor's). A NaN stays one. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = rintf(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    return p * power.value;
}

/* Sizes of the matrix products, see products.h. */
#define PANEL 32
#define TILE 8
/* Rows that stay in the second-level cache while the panels go by. */
#define ROW_BLOCK 128
/* Values of a column that are packed at a time, an even number. */
#define DEEP 16
/* Bytes that a panel is fetched ahead of its use. */
#define AHEAD 8192

typedef uint64_t u8x __attribute__((vector_size(64), aligned(8), may_alias));
typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t u16x __attribute__((vector_size(64), aligned(4), may_alias));

static inline v16 step_f32(v16 sum, const float *w, const float *x) { return sum + *(const v16 *)w * *x; }

/* w: 16 columns of two bf16 values each; x: those two values of a row. */
static inline v16 step_bf16(v16 sum, const uint16_t *w, const uint16_t *x) {
    uint32_t pair;
    memcpy(&pair, x, sizeof pair);
#ifdef __AVX512BF16__
    return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(w), (__m512bh)_mm512_set1_epi32((int)pair));
#else
    const u16x both = *(const u16x *)w;
    const u16x low = both << 16, high = both & 0xFFFF0000u;
    return sum + (v16)low * bf16_load((uint16_t)pair) + (v16)high * bf16_load((uint16_t)(pair >> 16));
#endif
}

/* Adds `count` words (a multiple of 8) to a checksum of 16: sums of words, and sums of those sums, in eight lanes, modulo
 * 2^64 (Fletcher, "An Arithmetic Checksum for Serial Transmissions", IEEE Trans. Commun. 1982). As fast as memory. */
void stagemesh_checksum(const uint64_t *words, int64_t count, uint64_t *state) {
    u8x first = *(u8x *)state, second = *(u8x *)(state + 8);
    for (int64_t i = 0; i < count; i += 8) {
        first += *(const u8x *)(words + i);
        second += first;
    }
    *(u8x *)state = first;
    *(u8x *)(state + 8) = second;
}

/* Sizes of a chunk's attention, see chunks.h: queries and keys of a block, which stay in the second-level cache. */
#define QUERIES 128
#define KEYS 64

int64_t stagemesh_chunk_floats(int64_t head_dim) {
    return 2 * QUERIES * head_dim + QUERIES * KEYS + 2 * KEYS * head_dim + 2 * QUERIES;
}

/* TILE rows of x times PANEL columns of w, over `depth`; added to what is there when `more`. */
static inline __attribute__((always_inline)) void product(const float *x, int64_t x_stride, const float *w,
                                                          int64_t w_stride, float *out, int64_t stride, int64_t depth,
                                                          const int more) {
    v16 sums[TILE][2];
    for (int r = 0; r < TILE; r++)
        for (int c = 0; c < 2; c++) sums[r][c] = more ? *(v16 *)(out + r * stride + 16 * c) : (v16){0};
    for (int64_t k = 0; k < depth; k++, w += w_stride) {
#pragma GCC unroll 8
        for (int r = 0; r < TILE; r++) {
            sums[r][0] = step_f32(sums[r][0], w, x + r * x_stride + k);
            sums[r][1] = step_f32(sums[r][1], w + 16, x + r * x_stride + k);
        }
    }
    for (int r = 0; r < TILE; r++)
        for (int c = 0; c < 2; c++) *(v16 *)(out + r * stride + 16 * c) = sums[r][c];
}

#define T float
#define NAME(x) x##_f32
#define LOAD(v) (v)
#define STORE(v) (v)
#define PAIR 1
#define STEP(a, w, x) step_f32(a, w, x)
#include "kernels.h"
#include "products.h"
#include "chunks.h"
#undef PAIR
#undef STEP
#undef T
#undef NAME
#undef LOAD
#undef STORE

#define T uint16_t
#define NAME(x) x##_bf16
#define LOAD(v) bf16_load(v)
#define STORE(v) bf16_store(v)
#define PAIR 2
#define STEP(a, w, x) step_bf16(a, w, x)
#include "kernels.h"
#include "products.h"
#include "chunks.h"
