/* Local training of dense networks (linear models, MLPs) by SGD: many clients in one call.

   Layer l maps rows h (B, in) to h W + b with W (in, out); hidden layers end in relu or tanh; the
   loss is squared, logistic or softmax. The arithmetic is that of batched.py; tests hold them equal.

   Why it is fast, in order of gain:
   - One client at a time: its weights stay in the L2 cache. Ten clients at once would not.
   - The rank-B update is added to W in place (`grow`): no gradient is stored, unless momentum,
     weight decay or a pull need one.
   - Features are read where they lie, by row number: nothing is gathered or copied.
   - Zeros are skipped: a feature that is zero in the whole batch is not read, and an input that is
     zero (four in five of MNIST's pixels, half of what a relu gives) adds nothing to W.
   - Out-dimensions are padded to whole vectors, so no inner loop has a tail.

   Threads call `atoll_train` with one Job and take the next client from its counter. A client is
   trained by one thread from start to end, so the bytes do not depend on how many there are.
   The build compiles this file once per instruction set; `atoll_level` says which one runs. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Tiles: `dot` keeps ROWS x ACROSS vectors in registers (and ROWS addresses: 12 spilled, at a third
   of the speed), `grow` SPAN vectors of one row of W or TALL x 2. */
#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 6, ACROSS = 4, SPAN = 14 };
#define TRAIN train_avx512
#elif defined(__AVX2__)
enum { LANES = 8, ROWS = 6, ACROSS = 2, SPAN = 12 };
#define TRAIN train_avx2
#else
enum { LANES = 4, ROWS = 6, ACROSS = 2, SPAN = 12 };
#define TRAIN train_plain
#endif
enum { TALL = 4 };
enum { SQUARED, LOGISTIC, SOFTMAX };
enum { RELU, TANH };

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* at any address */
typedef int32_t bits __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))

typedef struct { /* mirrored by CLIENT in kernel.py */
    const float *x;               /* (n, in), rows `stride` floats apart */
    const void *y;                /* (n,) int64 labels, or (n, out) float targets */
    const int64_t *order;         /* (epochs, n) row numbers */
    const float *anchor, *slope;  /* (size,) or NULL */
    float *delta;                 /* (size,) written: new weights minus old */
    int64_t stride, n;
    uint64_t moves;               /* bit 2l: W of layer l may change; bit 2l + 1: its b */
    double lr, mu;
    double loss;                  /* written: sum over the rows visited */
    int64_t hits;                 /* written: rows visited whose class was right */
    int64_t fault;                /* written: 1 for a label outside its range */
    int64_t finite;               /* written: whether loss and delta hold no NaN or infinity */
} Client;

typedef struct { /* mirrored by _Job in kernel.py */
    const float *start; /* (size,): W, b of each layer in turn */
    const int64_t *dims; /* (layers + 1,) */
    Client *clients;
    int64_t count, next; /* next: the first client that no thread has taken */
    int64_t layers, loss, activation, epochs, batch, batch_max;
    double momentum, weight_decay;
} Job;

typedef struct {
    int64_t in, out, wide; /* wide: out, rounded up to whole vectors */
    int64_t w, b, end;     /* where W, b and the next layer begin in a padded buffer */
} Layer;

enum { BAND = 32 }; /* rows of a batch that share a mark, one bit each */
typedef struct { /* the rows a layer reads */
    const float **rows; /* (B,) where each begins */
    uint32_t *marks;    /* (bands, in): bit r of marks[k] says that row r of the band is not 0 in column k */
    int32_t *cols;      /* (used,) the columns that are not zero in every row; all, where none is marked */
    int64_t used;
} Input;

typedef struct { /* one thread's memory */
    Layer *layer;
    int64_t size;                       /* of a padded buffer */
    float *w, *g, *m, *anchor, *slope;  /* (size,) padded */
    float **h;                          /* h[l]: (batch_max, wide) what layer l gave */
    float *d, *d_below;                 /* (batch_max, widest) gradients at a layer's two sides */
    float *turned, *zero;               /* a layer's W'; (widest,) zeros */
    const float **d_rows;               /* (batch_max,) where each row of d begins */
    Input *input;                       /* what each layer reads */
    int32_t *all;                       /* (tallest,) column numbers 0, 1, ... of any d */
} Desk;

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* ---- three products, each in tiles that stay in registers ---- */

INLINE void dot_tile(const int R, const int V, const float *const *x, const int32_t *cols, int64_t used,
                     const float *w, const float *b, float *z, int64_t wide) {
    vec sum[R][V];
    const float *row[R];
    for (int r = 0; r < R; r++) {
        row[r] = x[r];
        for (int v = 0; v < V; v++) sum[r][v] = ((const vec *)b)[v];
    }
    for (int64_t i = 0; i < used; i++) {
        const int64_t k = cols[i];
        const vec *wk = (const vec *)(w + k * wide);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) sum[r][v] += row[r][k] * wk[v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) ((vec *)(z + r * wide))[v] = sum[r][v];
}

INLINE void dot_rows(const int V, int64_t R, const float *const *x, const int32_t *cols, int64_t used,
                     const float *w, const float *b, float *z, int64_t wide) {
#define CASE(r) case r: dot_tile(r, V, x, cols, used, w, b, z, wide); break;
    switch (R) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
    }
#undef CASE
}

/* z (B, wide) = b + x W, over the columns of x in `cols`. */
static void dot(const float *const *x, int64_t B, const int32_t *cols, int64_t used, const float *w,
                const float *b, float *z, int64_t wide) {
    const int64_t tiles = (B + ROWS - 1) / ROWS; /* of nearly equal heights: 5 + 5, not 6 + 4 */
    for (int64_t j = 0; j < wide; j += ACROSS * LANES)
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t from = B * t / tiles, R = B * (t + 1) / tiles - from, V = (wide - j) / LANES;
#define ACROSS_IS(v) dot_rows(v, R, x + from, cols, used, w + j, b + j, z + from * wide + j, wide)
            if (V >= ACROSS) ACROSS_IS(ACROSS);
            else if (V == 3) ACROSS_IS(3);
            else if (V == 2) ACROSS_IS(2);
            else ACROSS_IS(1);
#undef ACROSS_IS
        }
}

INLINE void grow_tile(const int R, const int V, const float *const *x, const int32_t *cols, const float *d,
                      int64_t B, float *w, int64_t wide) {
    vec sum[R][V];
    int64_t k[R];
    for (int r = 0; r < R; r++) {
        k[r] = cols[r];
        for (int v = 0; v < V; v++) sum[r][v] = ((const vec *)(w + k[r] * wide))[v];
    }
    for (int64_t i = 0; i < B; i++) {
        const float *row = x[i];
        const vec *di = (const vec *)(d + i * wide);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) sum[r][v] += row[k[r]] * di[v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) ((vec *)(w + k[r] * wide))[v] = sum[r][v];
}

INLINE void grow_span(const int V, const float *const *x, int64_t k, uint32_t marks, const float *d, float *w,
                      int64_t wide) {
    vec sum[V];
    for (int v = 0; v < V; v++) sum[v] = ((const vec *)w)[v];
    for (; marks; marks &= marks - 1) {
        const int64_t i = __builtin_ctz(marks);
        const vec *di = (const vec *)(d + i * wide);
        for (int v = 0; v < V; v++) sum[v] += x[i][k] * di[v];
    }
    for (int v = 0; v < V; v++) ((vec *)w)[v] = sum[v];
}

/* W += x' d for a wide W: each of its rows once, met by those rows of d whose x is not zero. */
static void grow_wide(const Input *x, int64_t B, int64_t in, const float *d, float *w, int64_t wide) {
    const int64_t vecs = wide / LANES, spans = (vecs + SPAN - 1) / SPAN;
    for (int64_t band = 0; band * BAND < B; band++)
        for (int64_t c = 0; c < x->used; c++) {
            const int64_t k = x->cols[c];
            const uint32_t marks = x->marks[band * in + k];
            if (c + 2 < x->used) /* the next rows but one come from the L2 cache meanwhile */
                for (int64_t j = 0; j < wide; j += 16) __builtin_prefetch(w + x->cols[c + 2] * wide + j, 1);
            const float *const *rows = (const float *const *)x->rows + band * BAND, *db = d + band * BAND * wide;
            for (int64_t s = 0; s < spans && marks; s++) {
                const int64_t v = vecs * s / spans, V = vecs * (s + 1) / spans - v;
#define CASE(n) case n: grow_span(n, rows, k, marks, db + v * LANES, w + k * wide + v * LANES, wide); break;
                switch (V) {
                    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#if defined(__AVX512F__)
                    CASE(13) CASE(14)
#endif
                }
#undef CASE
            }
        }
}

/* The same for a W of one or two vectors: TALL of its rows at once, to keep the adders busy. */
static void grow_narrow(const Input *x, int64_t B, const float *d, float *w, int64_t wide) {
    const float *const *rows = (const float *const *)x->rows;
    int64_t c = 0;
    for (; c + TALL <= x->used; c += TALL)
        if (wide == LANES) grow_tile(TALL, 1, rows, x->cols + c, d, B, w, wide);
        else grow_tile(TALL, 2, rows, x->cols + c, d, B, w, wide);
    for (; c < x->used; c++)
        for (int64_t j = 0; j < wide; j += LANES) grow_tile(1, 1, rows, x->cols + c, d + j, B, w + j, wide);
}

/* Columns for rows, one square of LANES x LANES: each round interleaves the halves. */
INLINE void turn_square(const float *from, int64_t wide, float *to, int64_t wide_to) {
    vec s[LANES], t[LANES];
    for (int i = 0; i < LANES; i++) s[i] = *(const vec *)(from + i * wide);
    for (int round = 1; round < LANES; round *= 2) {
        for (int i = 0; i < LANES / 2; i++) {
            const vec a = s[i], b = s[i + LANES / 2];
#if defined(__AVX512F__)
            t[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            t[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
            t[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            t[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
            t[2 * i] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
            t[2 * i + 1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
        }
        for (int i = 0; i < LANES; i++) s[i] = t[i];
    }
    for (int i = 0; i < LANES; i++) *(vec *)(to + i * wide_to) = s[i];
}

/* turned (wide, high) = W', for W of `high` rows, both whole vectors. Then d W' is a `dot` at full
   speed; summing products across lanes instead took twice as long. */
static void turn(const float *w, int64_t high, int64_t wide, float *turned) {
    for (int64_t j = 0; j < wide; j += LANES)
        for (int64_t k = 0; k < high; k += LANES) turn_square(w + k * wide + j, wide, turned + j * high + k, high);
}

/* ---- one step of SGD ---- */

/* Marks what is not zero, a NaN and an infinity included; x->rows are set. */
static void mark(Input *x, int64_t B, int64_t in) {
    for (int64_t from = 0; from < B; from += BAND) {
        uint32_t *marks = x->marks + from / BAND * in;
        const int64_t to = from + BAND < B ? from + BAND : B;
        int64_t k = 0;
        for (; k + LANES <= in; k += LANES) {
            bits seen = {0};
            for (int64_t i = from; i < to; i++)
                seen |= (*(const loose *)(x->rows[i] + k) != 0) & (int32_t)(1u << (i - from));
            memcpy(marks + k, &seen, sizeof seen);
        }
        for (; k < in; k++) {
            marks[k] = 0;
            for (int64_t i = from; i < to; i++) marks[k] |= (uint32_t)(x->rows[i][k] != 0) << (i - from);
        }
    }
    x->used = 0;
    for (int64_t k = 0; k < in; k++) {
        uint32_t any = x->marks[k];
        for (int64_t from = BAND; from < B; from += BAND) any |= x->marks[from / BAND * in + k];
        x->cols[x->used] = (int32_t)k;
        x->used += any != 0;
    }
}

/* Written so that a NaN stays a NaN: divergence and bad data must show in the loss. */
static void activate(float *h, int64_t count, int64_t activation) {
    if (activation == RELU)
        for (int64_t i = 0; i < count; i++) h[i] = h[i] < 0 ? 0 : h[i];
    else
        for (int64_t i = 0; i < count; i++) h[i] = tanhf(h[i]);
}

static void slope_at(float *d, const float *h, int64_t count, int64_t activation) {
    if (activation == RELU)
        for (int64_t i = 0; i < count; i++) d[i] = h[i] > 0 ? d[i] : 0;
    else
        for (int64_t i = 0; i < count; i++) d[i] *= 1 - h[i] * h[i];
}

/* Sums of one row's loss into c, and d = scale * d(loss)/dz. */
static void softmax_row(Client *c, const float *z, int64_t label, int64_t out, float scale, float *d) {
    int64_t top = 0;
    for (int64_t j = 1; j < out; j++) top = z[j] > z[top] ? j : top;
    float sum = 0;
    for (int64_t j = 0; j < out; j++) sum += d[j] = expf(z[j] - z[top]);
    for (int64_t j = 0; j < out; j++) d[j] *= scale / sum;
    d[label] -= scale;
    c->loss += (double)logf(sum) - (double)(z[label] - z[top]);
    c->hits += top == label;
}

static void logistic_row(Client *c, float z, int64_t label, float scale, float *d) {
    const float e = expf(-fabsf(z)), p = z < 0 ? e / (1 + e) : 1 / (1 + e);
    d[0] = scale * (p - (float)label);
    c->loss += (double)log1pf(e) + (double)((z > 0 ? z : 0) - z * (float)label) + 0 * (double)z;
    c->hits += (z > 0) == (label == 1);
}

static void squared_row(Client *c, const float *z, const float *target, int64_t out, float scale, float *d) {
    for (int64_t j = 0; j < out; j++) {
        const float gap = z[j] - target[j];
        d[j] = 2 * scale / (float)out * gap;
        c->loss += (double)(gap * gap) / (double)out;
    }
}

static int lose(const Job *job, Client *c, const int64_t *row, int64_t B, const Layer *top, const float *z,
                float scale, float *d) {
    const int64_t classes = job->loss == SOFTMAX ? top->out : 2;
    memset(d, 0, (size_t)(B * top->wide) * sizeof *d);
    for (int64_t i = 0; i < B; i++, z += top->wide, d += top->wide) {
        if (job->loss == SQUARED) {
            squared_row(c, z, (const float *)c->y + row[i] * top->out, top->out, scale, d);
            continue;
        }
        const int64_t label = ((const int64_t *)c->y)[row[i]];
        if (label < 0 || label >= classes) return 1;
        if (job->loss == SOFTMAX) softmax_row(c, z, label, top->out, scale, d);
        else logistic_row(c, z[0], label, scale, d);
    }
    return 0;
}

/* Whether zeros are looked for in what layer l reads: always in features, elsewhere where it pays. */
static int marked(const Layer *layer, int64_t l) { return l == 0 || layer[l].wide > 2 * LANES; }

/* Adds d(loss)/dw * scale to `to`, which is w itself where SGD is plain. Returns 1 for a bad label. */
static int step(const Job *job, Client *c, Desk *desk, const int64_t *row, int64_t B, float scale, float *to) {
    const int64_t last = job->layers - 1;
    const Layer *layer = desk->layer;
    for (int64_t l = 0; l <= last; l++) {
        const Layer *a = layer + l;
        Input *x = desk->input + l;
        for (int64_t i = 0; i < B; i++)
            x->rows[i] = l ? desk->h[l - 1] + i * layer[l - 1].wide : c->x + row[i] * c->stride;
        if (marked(layer, l)) mark(x, B, a->in);
        dot(x->rows, B, x->cols, x->used, desk->w + a->w, desk->w + a->b, desk->h[l], a->wide);
        if (l < last) activate(desk->h[l], B * a->wide, job->activation);
    }
    if (lose(job, c, row, B, layer + last, desk->h[last], scale, desk->d)) return 1;
    for (int64_t l = last; l >= 0; l--) {
        const Layer *a = layer + l;
        if (l) {
            const int64_t below = layer[l - 1].wide;
            turn(desk->w + a->w, below, a->wide, desk->turned);
            for (int64_t i = 0; i < B; i++) desk->d_rows[i] = desk->d + i * a->wide;
            dot(desk->d_rows, B, desk->all, a->out, desk->turned, desk->zero, desk->d_below, below);
            slope_at(desk->d_below, desk->h[l - 1], B * below, job->activation);
        }
        if (c->moves >> (2 * l) & 1) {
            if (a->wide > 2 * LANES) grow_wide(desk->input + l, B, a->in, desk->d, to + a->w, a->wide);
            else grow_narrow(desk->input + l, B, desk->d, to + a->w, a->wide);
        }
        if (c->moves >> (2 * l + 1) & 1)
            for (int64_t i = 0; i < B; i++)
                for (int64_t j = 0; j < a->wide; j++) to[a->b + j] += desk->d[i * a->wide + j];
        float *swap = desk->d;
        desk->d = desk->d_below, desk->d_below = swap;
    }
    return 0;
}

/* w -= lr * m, m = momentum * m + g + weight_decay * w + mu (w - anchor) + slope, as torch.optim.SGD. */
static void move(const Job *job, const Client *c, Desk *desk) {
    const float lr = (float)c->lr, mu = (float)c->mu;
    const float momentum = (float)job->momentum, decay = (float)job->weight_decay;
    for (int64_t leaf = 0; leaf < 2 * job->layers; leaf++) {
        const Layer *a = desk->layer + leaf / 2;
        const int64_t from = leaf % 2 ? a->b : a->w, to = leaf % 2 ? a->end : a->b;
        if (!(c->moves >> leaf & 1)) continue;
        for (int64_t i = from; i < to; i++) {
            float g = desk->g[i] + decay * desk->w[i];
            if (mu != 0) g += mu * (desk->w[i] - desk->anchor[i]);
            if (c->slope) g += desk->slope[i];
            desk->m[i] = momentum * desk->m[i] + g;
            desk->w[i] -= lr * desk->m[i];
        }
    }
}

/* ---- clients and threads ---- */

static void pad(const Job *job, const Desk *desk, const float *from, float *to) {
    for (int64_t l = 0; l < job->layers; l++) {
        const Layer *a = desk->layer + l;
        for (int64_t k = 0; k <= a->in; k++, from += a->out) /* the last row is b */
            memcpy(to + (k < a->in ? a->w + k * a->wide : a->b), from, (size_t)a->out * sizeof *to);
    }
}

static void answer(const Job *job, const Desk *desk, Client *c) {
    const float *start = job->start;
    float *delta = c->delta;
    int wild = !isfinite(c->loss);
    for (int64_t l = 0; l < job->layers; l++) {
        const Layer *a = desk->layer + l;
        for (int64_t k = 0; k <= a->in; k++, start += a->out, delta += a->out) {
            const float *w = desk->w + (k < a->in ? a->w + k * a->wide : a->b);
            for (int64_t j = 0; j < a->out; j++) {
                delta[j] = w[j] - start[j];
                wild |= !(fabsf(delta[j]) <= FLT_MAX);
            }
        }
    }
    c->finite = !wild;
}

/* Whether SGD may write each gradient into the weights at once. */
static int plain(const Job *job, const Client *c) {
    return job->momentum == 0 && job->weight_decay == 0 && c->mu == 0 && !c->slope;
}

static void client(const Job *job, Client *c, Desk *desk) {
    const int at_once = plain(job, c);
    pad(job, desk, job->start, desk->w);
    if (c->mu != 0) pad(job, desk, c->anchor ? c->anchor : job->start, desk->anchor);
    if (c->slope) pad(job, desk, c->slope, desk->slope);
    if (!at_once) memset(desk->m, 0, (size_t)desk->size * sizeof *desk->m);
    c->loss = 0, c->hits = 0, c->fault = 0;
    for (int64_t e = 0; e < job->epochs; e++)
        for (int64_t at = 0; at < c->n; at += job->batch) {
            const int64_t B = c->n - at < job->batch ? c->n - at : job->batch;
            const int64_t *row = c->order + e * c->n + at;
            if (!at_once) memset(desk->g, 0, (size_t)desk->size * sizeof *desk->g);
            const float scale = at_once ? (float)(-c->lr / (double)B) : 1 / (float)B;
            if (step(job, c, desk, row, B, scale, at_once ? desk->w : desk->g)) {
                c->fault = 1;
                return;
            }
            if (!at_once) move(job, c, desk);
        }
    answer(job, desk, c);
}

/* The next `count` items of `each` bytes, on a cache line of their own; counts only, without memory. */
static void *take(char *memory, int64_t *used, int64_t count, int64_t each) {
    void *got = memory ? memory + *used : 0;
    *used += round_up(count * each, 64);
    return got;
}

/* Lays a desk out in zeroed memory and returns the bytes it needs. */
static int64_t furnish(const Job *job, Desk *desk, char *memory) {
    const int64_t L = job->layers, B = job->batch_max;
    int64_t used = 0, widest = 0, tallest = 0, largest = 0, at = 0;
    desk->layer = take(memory, &used, L, sizeof(Layer));
    desk->h = take(memory, &used, L, sizeof(float *));
    desk->input = take(memory, &used, L, sizeof(Input));
    for (int64_t l = 0; l < L; l++) {
        const int64_t in = job->dims[l], out = job->dims[l + 1], wide = round_up(out, LANES);
        const int64_t b = at + round_up(in, LANES) * wide;
        float *h = take(memory, &used, B * wide, sizeof(float));
        const Input x = {
            take(memory, &used, B, sizeof(float *)), take(memory, &used, (B + BAND - 1) / BAND * in, sizeof(uint32_t)),
            take(memory, &used, in + 1, sizeof(int32_t)), in,
        };
        for (int64_t k = 0; memory && k < in; k++) x.cols[k] = (int32_t)k;
        if (memory) desk->input[l] = x, desk->layer[l] = (Layer){in, out, wide, at, b, b + wide}, desk->h[l] = h;
        at = b + wide;
        widest = wide > widest ? wide : widest;
        tallest = out > tallest ? out : tallest;
        if (l && round_up(in, LANES) * wide > largest) largest = round_up(in, LANES) * wide;
    }
    desk->size = at;
    int simple = 1;
    for (int64_t i = 0; i < job->count; i++) simple &= plain(job, job->clients + i);
    float **padded[] = {&desk->w, &desk->g, &desk->m, &desk->anchor, &desk->slope};
    for (int i = 0; i < (simple ? 1 : 5); i++) *padded[i] = take(memory, &used, at, sizeof(float));
    desk->d = take(memory, &used, B * widest, sizeof(float));
    desk->d_below = take(memory, &used, B * widest, sizeof(float));
    desk->turned = take(memory, &used, largest, sizeof(float));
    desk->zero = take(memory, &used, widest, sizeof(float));
    desk->d_rows = take(memory, &used, B, sizeof(float *));
    desk->all = take(memory, &used, tallest, sizeof(int32_t));
    for (int64_t k = 0; memory && k < tallest; k++) desk->all[k] = (int32_t)k;
    return used;
}

int TRAIN(Job *job) {
    Desk desk = {0};
    char *memory = calloc((size_t)furnish(job, &desk, 0) + 64, 1); /* zeros: padding must be zero */
    if (!memory) return 1;
    furnish(job, &desk, memory + (64 - (uintptr_t)memory % 64));
    for (;;) {
        const int64_t i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (i >= job->count) break;
        client(job, job->clients + i, &desk);
    }
    free(memory);
    return 0;
}

/* ---- which instruction set; compiled once, in the plain object ---- */

#ifdef LEVELS
int train_avx2(Job *);
int train_avx512(Job *);
#endif
#if !defined(__AVX2__)
/* 0 plain, 1 AVX2 with FMA, 2 AVX-512: the best this processor has. */
int atoll_level(void) {
#ifdef LEVELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

/* The size of what is shared with kernel.py, which refuses a library of another shape. */
int atoll_bytes(void) { return (int)(sizeof(Client) + sizeof(Job)); }

/* Trains clients until none is left. Returns 0, or 1 where memory ran out. */
int atoll_train(int level, Job *job) {
#ifdef LEVELS
    if (level == 2) return train_avx512(job);
    if (level == 1) return train_avx2(job);
#endif
    (void)level;
    return train_plain(job);
}
#endif
