/* Attention of a prompt's chunk for one element type: see kernels.h for what is defined around it.
 *
 * Blocks of queries meet blocks of keys, and what each query has summed so far is scaled whenever a larger score comes
 * (online softmax, as in FlashAttention-2, Dao 2023): no scores are kept but a block's, and no mask is made. Everything
 * between reading and writing is float. */

/* Task `part` of one key head: its queries (a row's heads of the group lie side by side) `part * QUERIES` onwards. */
static void NAME(chunk_part)(const T *query, T *out, const T *keys, const T *values, float *scratch, int64_t head,
                             int64_t part, int64_t rows, int64_t position, int64_t query_stride, int64_t key_stride,
                             int64_t value_stride, int64_t heads, int64_t kv_heads, int64_t head_dim, int causal,
                             float scale) {
    const int64_t group = heads / kv_heads, from = part * QUERIES, length = position + rows;
    const int64_t count = rows * group - from < QUERIES ? rows * group - from : QUERIES;
    const int64_t padded = (count + TILE - 1) / TILE * TILE;
    float *q = scratch, *sums = q + QUERIES * head_dim, *scores = sums + QUERIES * head_dim;
    float *k = scores + QUERIES * KEYS, *v = k + KEYS * head_dim, *largest = v + KEYS * head_dim, *total = largest + QUERIES;
    for (int64_t i = 0; i < padded; i++) {
        const T *x = query + (from + i) / group * query_stride + (head * group + (from + i) % group) * head_dim;
        for (int64_t d = 0; d < head_dim; d++) {
            q[i * head_dim + d] = i < count ? LOAD(x[d]) * scale : 0.0f;
            sums[i * head_dim + d] = 0;
        }
        largest[i] = -INFINITY;
        total[i] = 0;
    }
    const int64_t end = causal ? position + (from + count - 1) / group + 1 : length;
    for (int64_t at = 0; at < end; at += KEYS) {
        const int64_t here = end - at < KEYS ? end - at : KEYS;
        for (int64_t p = 0; p < KEYS; p++) {
            const T *kp = keys + (at + p) * key_stride + head * head_dim;
            const T *vp = values + (at + p) * value_stride + head * head_dim;
            for (int64_t d = 0; d < head_dim; d++) {
                k[d * KEYS + p] = p < here ? LOAD(kp[d]) : 0.0f;
                v[p * head_dim + d] = p < here ? LOAD(vp[d]) : 0.0f;
            }
        }
        for (int64_t i = 0; i < padded; i += TILE)
            for (int64_t c = 0; c < KEYS; c += PANEL)
                product(q + i * head_dim, head_dim, k + c, KEYS, scores + i * KEYS + c, KEYS, head_dim, 0);
        for (int64_t i = 0; i < padded; i++) {
            float *s = scores + i * KEYS;
            int64_t seen = causal ? position + (from + i) / group + 1 - at : here;
            seen = i >= count || seen < 0 ? 0 : (seen < here ? seen : here);
            float most = largest[i], sum = 0;
            for (int64_t p = 0; p < seen; p++) most = s[p] > most ? s[p] : most;
            for (int64_t p = 0; p < seen; p++) {
                s[p] = exponential(s[p] - most);
                sum += s[p];
            }
            for (int64_t p = seen; p < KEYS; p++) s[p] = 0;
            if (seen && most > largest[i]) {
                const float kept = exponential(largest[i] - most);
                for (int64_t d = 0; d < head_dim; d++) sums[i * head_dim + d] *= kept;
                total[i] *= kept;
                largest[i] = most;
            }
            total[i] += sum;
        }
        for (int64_t i = 0; i < padded; i += TILE)
            for (int64_t d = 0; d < head_dim; d += PANEL)
                product(scores + i * KEYS, KEYS, v + d, head_dim, sums + i * head_dim + d, head_dim, KEYS, 1);
    }
    for (int64_t i = 0; i < count; i++) {
        T *y = out + ((from + i) / group * heads + head * group + (from + i) % group) * head_dim;
        const float inverse = 1.0f / total[i];
        for (int64_t d = 0; d < head_dim; d++) y[d] = STORE(sums[i * head_dim + d] * inverse);
    }
}

/* Attention of `rows` consecutive positions of one session, `position` onwards, over position + rows keys.
 *
 * query [rows, query_stride], whose first heads * head_dim columns count; out [rows, heads * head_dim];
 * keys [position + rows, key_stride], whose first kv_heads * head_dim columns count; values likewise.
 * head_dim is a multiple of PANEL. scratch: threads * stagemesh_chunk_floats(head_dim) floats. */
void NAME(chunk)(const T *query, T *out, const T *keys, const T *values, float *scratch, int64_t rows, int64_t position,
                 int64_t query_stride, int64_t key_stride, int64_t value_stride, int64_t heads, int64_t kv_heads,
                 int64_t head_dim, int causal, float scale, int threads) {
    const int64_t parts = (rows * (heads / kv_heads) + QUERIES - 1) / QUERIES;
    /* The last queries see the most keys: those first, or one thread ends late. */
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 1)
    for (int64_t task = 0; task < parts * kv_heads; task++)
        NAME(chunk_part)(query, out, keys, values, scratch + THREAD() * stagemesh_chunk_floats(head_dim), task % kv_heads,
                         parts - 1 - task / kv_heads, rows, position, query_stride, key_stride, value_stride, heads,
                         kv_heads, head_dim, causal, scale);
}
