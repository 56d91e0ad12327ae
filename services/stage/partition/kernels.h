/* The kernels of kernels.c for one element type. Included once per type, with these defined:
 *   T            the element type as it lies in memory
 *   NAME(x)      the public name of function x
 *   LOAD(v)      T -> float
 *   STORE(v)     float -> T, rounded to the nearest
 * Sums are float. Values that the model library rounds to T between two operations are rounded here too, so that
 * both give the same tokens. */

/* hidden += delta (when given), then out = weight * hidden / rms(hidden); all [rows, width]. */
void NAME(add_rms_norm)(T *hidden, const T *delta, const T *weight, T *out, int64_t rows, int64_t width, float eps) {
    for (int64_t row = 0; row < rows; row++) {
        T *x = hidden + row * width;
        T *y = out + row * width;
        if (delta) {
            const T *d = delta + row * width;
            for (int64_t i = 0; i < width; i++) x[i] = STORE(LOAD(x[i]) + LOAD(d[i]));
        }
        float sum = 0;
        for (int64_t i = 0; i < width; i++) sum += LOAD(x[i]) * LOAD(x[i]);
        const float scale = 1.0f / sqrtf(sum / (float)width + eps);
        for (int64_t i = 0; i < width; i++) y[i] = STORE(LOAD(weight[i]) * LOAD(STORE(LOAD(x[i]) * scale)));
    }
}

/* One head of one row: normalise (when weights are given), then rotate its two halves against each other. */
static inline void NAME(rotate)(T *x, const T *cos, const T *sin, const T *norm, float eps, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    if (norm) NAME(add_rms_norm)(x, 0, norm, x, 1, head_dim, eps);
    for (int64_t i = 0; i < half; i++) {
        const float a = LOAD(x[i]), b = LOAD(x[i + half]);
        const float low = LOAD(STORE(a * LOAD(cos[i]))) - LOAD(STORE(b * LOAD(sin[i])));
        const float high = LOAD(STORE(b * LOAD(cos[i + half]))) + LOAD(STORE(a * LOAD(sin[i + half])));
        x[i] = STORE(low);
        x[i + half] = STORE(high);
    }
}

/* Rotary positions on the queries and keys of qkv [rows, (heads + 2 kv_heads) * head_dim], in place; then, when
 * slots [rows] are given, keys and values go to those positions of the arenas [positions, kv_heads, head_dim].
 * cos and sin are [rows, head_dim]. */
void NAME(rope_store)(T *qkv, const T *cos, const T *sin, const T *query_norm, const T *key_norm, float eps,
                      const int64_t *slots, T *keys, T *values, int64_t rows, int64_t heads, int64_t kv_heads,
                      int64_t head_dim) {
    const int64_t width = (heads + 2 * kv_heads) * head_dim, kv_width = kv_heads * head_dim;
    for (int64_t row = 0; row < rows; row++) {
        T *q = qkv + row * width, *k = q + heads * head_dim, *v = k + kv_width;
        const T *c = cos + row * head_dim, *s = sin + row * head_dim;
        for (int64_t h = 0; h < heads; h++) NAME(rotate)(q + h * head_dim, c, s, query_norm, eps, head_dim);
        for (int64_t h = 0; h < kv_heads; h++) NAME(rotate)(k + h * head_dim, c, s, key_norm, eps, head_dim);
        if (slots) {
            memcpy(keys + slots[row] * kv_width, k, sizeof(T) * (size_t)kv_width);
            memcpy(values + slots[row] * kv_width, v, sizeof(T) * (size_t)kv_width);
        }
    }
}

/* out = silu(gate) * up; gate_up [rows, 2 * width] has the gate first. */
void NAME(silu_mul)(const T *gate_up, T *out, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++) {
        const T *gate = gate_up + row * 2 * width, *up = gate + width;
        T *y = out + row * width;
        for (int64_t i = 0; i < width; i++) {
            const float g = LOAD(gate[i]);
            y[i] = STORE(LOAD(STORE(g / (1.0f + exponential(-g)))) * LOAD(up[i]));
        }
    }
}

/* Attention of one query row over its first `length` positions, for kv heads first .. end (exclusive).
 * scores has room for group * length floats. */
static inline __attribute__((always_inline)) void NAME(attend)(
    const T *query, T *out, const T *keys, const T *values, const int32_t *table, float *scores, int64_t length,
    int64_t first, int64_t end, int64_t group, int64_t kv_heads, const int64_t head_dim, int64_t block, float scale) {
    const int64_t kv_width = kv_heads * head_dim;
    for (int64_t h = first; h < end; h++) {
        const T *q = query + h * group * head_dim;
        for (int64_t at = 0; at < length; at += block) {
            const T *k = keys + (int64_t)table[at / block] * block * kv_width + h * head_dim;
            const int64_t count = length - at < block ? length - at : block;
            for (int64_t p = 0; p < count; p++, k += kv_width) {
                __builtin_prefetch(k + block * kv_width);
                for (int64_t g = 0; g < group; g++) {
                    float sum = 0;
                    for (int64_t i = 0; i < head_dim; i++) sum += LOAD(q[g * head_dim + i]) * LOAD(k[i]);
                    scores[g * length + at + p] = sum * scale;
                }
            }
        }
        for (int64_t g = 0; g < group; g++) {
            float *s = scores + g * length, largest = s[0], sum = 0;
            for (int64_t p = 1; p < length; p++) largest = s[p] > largest ? s[p] : largest;
            for (int64_t p = 0; p < length; p++) {
                s[p] = exponential(s[p] - largest);
                sum += s[p];
            }
            const float inverse = 1.0f / sum;
            for (int64_t p = 0; p < length; p++) s[p] *= inverse;
        }
        for (int64_t g = 0; g < group; g++) {
            float sums[MAX_HEAD_DIM];
            for (int64_t i = 0; i < head_dim; i++) sums[i] = 0;
            for (int64_t at = 0; at < length; at += block) {
                const T *v = values + (int64_t)table[at / block] * block * kv_width + h * head_dim;
                const int64_t count = length - at < block ? length - at : block;
                for (int64_t p = 0; p < count; p++, v += kv_width) {
                    const float weight = scores[g * length + at + p];
                    for (int64_t i = 0; i < head_dim; i++) sums[i] += weight * LOAD(v[i]);
                }
            }
            T *y = out + (h * group + g) * head_dim;
            for (int64_t i = 0; i < head_dim; i++) y[i] = STORE(sums[i]);
        }
    }
}

/* Attention of single query rows over keys and values that lie in blocks.
 *
 * rows [count]: which rows of query and out; query has query_stride elements a row, out heads * head_dim.
 * tables [count, table_width]: numbers of each row's blocks in the arenas [positions, kv_heads, head_dim];
 * lengths [count]: positions to attend to, the row's own (already stored) included.
 * scratch: threads * (heads / kv_heads) * max(lengths) floats. */
void NAME(paged_decode)(const T *query, T *out, const T *keys, const T *values, const int64_t *rows,
                        const int32_t *tables, const int64_t *lengths, float *scratch, int64_t count,
                        int64_t query_stride, int64_t table_width, int64_t longest, int64_t heads, int64_t kv_heads,
                        int64_t head_dim, int64_t block, float scale, int threads) {
    const int64_t group = heads / kv_heads;
    /* With fewer rows than threads, the heads of a row are shared out too. */
    const int64_t parts = count >= threads ? 1 : (threads < kv_heads ? threads : kv_heads);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 1)
    for (int64_t task = 0; task < count * parts; task++) {
        const int64_t index = task / parts, part = task % parts;
        const int64_t first = kv_heads * part / parts, end = kv_heads * (part + 1) / parts;
        const T *q = query + rows[index] * query_stride;
        T *y = out + rows[index] * heads * head_dim;
        const int32_t *table = tables + index * table_width;
        float *scores = scratch + THREAD() * group * longest;
#define ATTEND(size) \
    NAME(attend)(q, y, keys, values, table, scores, lengths[index], first, end, group, kv_heads, size, block, scale)
        if (head_dim == 64) ATTEND(64);
        else if (head_dim == 128) ATTEND(128);
        else ATTEND(head_dim);
#undef ATTEND
    }
}
