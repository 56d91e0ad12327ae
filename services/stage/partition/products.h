/* Matrix products of kernels.c for one element type: see kernels.h for what is defined around it, and
 *   PAIR         how many values of one column lie side by side in a panel (1, or 2 for bf16)
 *   STEP(a, w, x) a + the products of the 16 columns at w with the PAIR values at x, 16 floats
 *
 * The weight [columns, depth] of a linear layer is stored in panels of 32 columns: panel, depth / PAIR, 32, PAIR. A
 * tile of up to 8 rows then reads a panel once, front to back, with its 16 x 16 sums in registers: with few rows
 * the product takes as long as reading the weight from memory does. (The layout and the tile are those that Goto
 * and van de Geijn's "Anatomy of High-Performance Matrix Multiplication", TOMS 2008, calls panels and micro-kernel.) */

/* weight [columns, depth] -> panels; columns beyond the last are zero. Rows are read a cache line at a time: of 32 rows
 * a power of two apart, value by value, few would stay in the first-level cache. */
void NAME(pack_panels)(const T *weight, T *panels, int64_t columns, int64_t depth) {
    T block[PANEL][DEEP];
    for (int64_t at = 0; at < columns; at += PANEL) {
        const int64_t have = columns - at < PANEL ? columns - at : PANEL;
        for (int64_t k = 0; k < depth; k += DEEP) {
            const int64_t deep = depth - k < DEEP ? depth - k : DEEP;
            if (have < PANEL || deep < DEEP) memset(block, 0, sizeof block);
            for (int64_t c = 0; c < have; c++) memcpy(block[c], weight + (at + c) * depth + k, deep * sizeof(T));
            T *to = panels + at * depth + k * PANEL;
            for (int64_t pair = 0; pair < deep; pair += PAIR, to += PAIR * PANEL)
                for (int64_t c = 0; c < PANEL; c++)
                    for (int64_t i = 0; i < PAIR; i++) to[c * PAIR + i] = block[c][pair + i];
        }
    }
}

/* `rows` (a constant, at most TILE) rows of x times one panel. At each step the memory at `ahead` is fetched, which
 * then moves on by `advance` bytes. */
static inline __attribute__((always_inline)) void NAME(tile)(const T *x, const T *panel, const T *bias, T *out,
                                                             const int rows, int64_t depth, int64_t columns,
                                                             int64_t stride, const char *ahead, int64_t advance) {
    v16 sums[TILE][2];
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (v16){0};
    for (int64_t k = 0; k < depth; k += PAIR, panel += PAIR * PANEL, ahead += advance) {
        __builtin_prefetch(ahead);
        __builtin_prefetch(ahead + 64);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            sums[r][0] = STEP(sums[r][0], panel, x + r * depth + k);
            sums[r][1] = STEP(sums[r][1], panel + PAIR * 16, x + r * depth + k);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            out[r * stride + c] = STORE(sums[r][c / 16][c % 16] + (bias ? LOAD(bias[c]) : 0.0f));
}

/* out [rows, columns] = x [rows, depth] times the packed weight, plus bias [columns] when given. */
void NAME(linear)(const T *x, const T *panels, const T *bias, T *out, int64_t rows, int64_t depth, int64_t columns,
                  int threads) {
    const int64_t count = (columns + PANEL - 1) / PANEL;
    for (int64_t from = 0; from < rows; from += ROW_BLOCK) {
        const int64_t to = from + ROW_BLOCK < rows ? from + ROW_BLOCK : rows;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (int64_t p = 0; p < count; p++) {
            const T *panel = panels + p * PANEL * depth;
            const T *b = bias ? bias + p * PANEL : 0;
            const int64_t width = columns - p * PANEL < PANEL ? columns - p * PANEL : PANEL;
            /* One tile reads the panel from memory, so it fetches what it comes to next. Of several, each fetches
             * its part of the next panel meanwhile. */
            const int64_t bytes = PANEL * depth * (int64_t)sizeof(T), tiles = (to - from + TILE - 1) / TILE;
            for (int64_t row = from; row < to; row += TILE) {
                const int64_t tile = (row - from) / TILE;
                const char *ahead = (const char *)panel + (tiles == 1 ? AHEAD : bytes + bytes * tile / tiles);
                const int64_t advance = PAIR * PANEL * (int64_t)sizeof(T) / tiles;
                const T *xs = x + row * depth;
                T *y = out + row * columns + p * PANEL;
#define ROWS(n) \
    case n: NAME(tile)(xs, panel, b, y, n, depth, width, columns, ahead, advance); break;
                switch (to - row) {
                    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7)
                    default: NAME(tile)(xs, panel, b, y, TILE, depth, width, columns, ahead, advance);
                }
#undef ROWS
            }
        }
    }
}
