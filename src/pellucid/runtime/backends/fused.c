/* The operations of a small network, on one thread: products in bfloat16, sums in float32.

`run` does a list of them, which fused.py writes. A picture is rows of channels, one for each
position, (batch, height, width, channels); a pointer's rows are `ld` numbers apart. Every output row
is computed alike, so a picture does not depend on the others in its batch. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef USE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef int64_t i64;
typedef uint16_t bf16;

enum { PRODUCT, GROUP_NORM, LAYER_NORM, ATTENTION, JOIN };
enum { NONE, SILU, GEGLU };
enum { ROWS = 128, BLOCK = 32, LANES = 16 };

#define EACH(i, n) for (i64 i = 0; i < (n); i++)
#define BY(i, n, step) for (i64 i = 0; i < (n); i += (step))

/* ---------------------------------------------------------------- vectors of 16 numbers */

static inline __mmask16 first(i64 n) { return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1); }

static inline __m512 load(const float *x, __mmask16 m) { return _mm512_maskz_loadu_ps(m, x); }

static inline __m512 wide(const bf16 *x, __mmask16 m) {
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

static inline void narrow(bf16 *to, __mmask16 m, __m512 v) {
    _mm256_mask_storeu_epi16(to, m, (__m256i)_mm512_cvtneps_pbh(v));
}

static inline void store(void *to, i64 in_float, i64 at, __mmask16 m, __m512 v) {
    if (in_float)
        _mm512_mask_storeu_ps((float *)to + at, m, v);
    else
        narrow((bf16 *)to + at, m, v);
}

static inline __m512 set(float x) { return _mm512_set1_ps(x); }
static inline __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
static inline __m512 mul(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
static inline __m512 muladd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }

/* e^x to 3e-6 of itself: 2^n times the Taylor series of 2^f, with f between -1/2 and 1/2. */
static inline __m512 exp16(__m512 x) {
    __m512 y = mul(x, set(1.44269504f)), n = _mm512_roundscale_ps(y, 0), f = _mm512_sub_ps(y, n);
    __m512 p = muladd(set(1.33335581e-3f), f, set(9.61812911e-3f));
    p = muladd(p, f, set(5.55041087e-2f));
    p = muladd(p, f, set(2.40226507e-1f));
    p = muladd(p, f, set(6.93147181e-1f));
    return _mm512_scalef_ps(muladd(p, f, set(1)), n);
}

/* 1/x to 6e-5 of itself: what follows is rounded to bfloat16, to 2e-3. */
static inline __m512 inverse(__m512 x) { return _mm512_rcp14_ps(x); }

static inline __m512 silu16(__m512 x) {
    return mul(x, inverse(add(set(1), exp16(_mm512_sub_ps(set(0), x)))));
}

/* x/2 (1 + erf(x / sqrt 2)); erf by Abramowitz & Stegun, 7.1.26. */
static inline __m512 gelu16(__m512 x) {
    __m512 size = mul(_mm512_abs_ps(x), set(0.70710678f));
    __m512 t = inverse(muladd(size, set(0.3275911f), set(1)));
    __m512 p = muladd(set(1.061405429f), t, set(-1.453152027f));
    p = muladd(p, t, set(1.421413741f));
    p = muladd(p, t, set(-0.284496736f));
    p = mul(muladd(p, t, set(0.254829592f)), t);
    __m512 rest = mul(p, exp16(_mm512_sub_ps(set(0), mul(size, size)))); /* 1 - erf |x| */
    __m512 half = mul(x, set(0.5f));
    __mmask16 below = _mm512_cmp_ps_mask(x, set(0), _CMP_LT_OQ);
    return mul(half, _mm512_mask_sub_ps(_mm512_sub_ps(set(2), rest), below, rest, set(0)));
}

/* ---------------------------------------------------------------- products, convolutions */

typedef struct {
    i64 kind;
    const void *x;
    i64 x_float, ldx, rows;
    i64 kernel; /* 0: a product of the rows as they are; else a convolution of this size */
    i64 border; /* whether x has a border of zeros, 1 wide; then w is a multiple of 16 */
    i64 h, w, seen_h, seen_w, out_h, out_w, stride, pad; /* seen: the size after enlargement */
    i64 channels, depth, width;                          /* depth: a multiple of 32 */
    const bf16 *weight; /* (width / 32, depth / 32, 2, 16, 16, 2): the tiles of AMX */
    const float *bias;
    const float *plus;
    i64 ldplus, activation;
    void *out;
    i64 out_float, ldout;
    bf16 *panel; /* (ROWS, depth) */
} Product;

static void copy(const Product *p, i64 row, i64 channels, bf16 *to) {
    const float *x = (const float *)p->x + row * p->ldx;
    if (!p->x_float)
        memcpy(to, (const bf16 *)p->x + row * p->ldx, 2 * channels);
    else
        BY(c, channels, LANES) {
            __mmask16 m = first(channels - c);
            narrow(to + c, m, load(x + c, m));
        }
}

/* What the output rows from `begin` on are products of. */
static void gather(const Product *p, i64 begin, i64 rows) {
    i64 across = p->kernel ? p->out_w : 1, each = p->kernel ? p->out_h * across : 1, n = p->channels;
    int plain = p->seen_h == p->h && p->seen_w == p->w && p->ldx == n;
    EACH(r, rows) {
        bf16 *to = p->panel + r * p->depth, *end = to + p->depth;
        i64 row = begin + r, b = row / each, y = row % each / across, x = row % across;
        if (!p->kernel) {
            copy(p, row, n, to);
            to += n;
        }
        i64 left = x * p->stride - p->pad;
        int inside = plain && left >= 0 && left + p->kernel <= p->w; /* its positions lie side by side */
        EACH(i, p->kernel) {
            i64 sy = y * p->stride + i - p->pad;
            if (sy < 0 || sy >= p->seen_h)
                memset(to, 0, 2 * p->kernel * n);
            else if (inside)
                copy(p, (b * p->h + sy) * p->w + left, p->kernel * n, to);
            else
                EACH(j, p->kernel) {
                    i64 sx = left + j, line = b * p->h + sy * p->h / p->seen_h;
                    if (sx < 0 || sx >= p->seen_w)
                        memset(to + j * n, 0, 2 * n);
                    else
                        copy(p, line * p->w + sx * p->w / p->seen_w, n, to + j * n);
                }
            to += p->kernel * n;
        }
        memset(to, 0, 2 * (end - to));
    }
}

/* 32 rows times 32 columns: (32, 32). Two times 16 rows, lda apart, in which what belongs to a tap of a
convolution lies `taps` further; `tiles` times 32 numbers of each. */
typedef struct {
    const bf16 *a[2];
    i64 lda, count, taps[9], tiles;
} Rows;

#ifdef USE_AMX
static void block(const Rows *rows, const bf16 *b, float *c) {
    i64 bytes = 2 * rows->lda;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    EACH(tap, rows->count) {
        const bf16 *upper = rows->a[0] + rows->taps[tap], *lower = rows->a[1] + rows->taps[tap];
        for (i64 t = 0; t < rows->tiles; t++, b += 1024) {
            _tile_loadd(4, upper + 32 * t, bytes);
            _tile_loadd(6, b, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b + 512, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, lower + 32 * t, bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, 128);
    _tile_stored(1, c + 16, 128);
    _tile_stored(2, c + 16 * BLOCK, 128);
    _tile_stored(3, c + 16 * BLOCK + 16, 128);
}
#else
static void block(const Rows *rows, const bf16 *b, float *c) {
    BY(r, BLOCK, 8) {
        const bf16 *a = rows->a[r / 16] + r % 16 * rows->lda, *at = b;
        __m512 sums[8][2];
        EACH(i, 8) sums[i][0] = sums[i][1] = set(0);
        EACH(tap, rows->count) EACH(t, rows->tiles) {
            EACH(k, 16) {
                __m512bh b0 = (__m512bh)_mm512_loadu_si512(at + 32 * k);
                __m512bh b1 = (__m512bh)_mm512_loadu_si512(at + 512 + 32 * k);
                EACH(i, 8) {
                    int pair;
                    memcpy(&pair, a + rows->taps[tap] + i * rows->lda + 32 * t + 2 * k, 4);
                    __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
                    sums[i][0] = _mm512_dpbf16_ps(sums[i][0], x, b0);
                    sums[i][1] = _mm512_dpbf16_ps(sums[i][1], x, b1);
                }
            }
            at += 1024;
        }
        EACH(i, 8) EACH(j, 2) _mm512_storeu_ps(c + (r + i) * BLOCK + 16 * j, sums[i][j]);
    }
}
#endif

/* Where 16 positions of a picture with a border begin. */
static const bf16 *bordered(const Product *p, i64 row) {
    i64 y = row / p->w, x = row % p->w; /* y: of all pictures */
    return (const bf16 *)p->x + ((y + y / p->h * 2) * (p->w + 2) + x) * p->ldx;
}

/* Bias, sum and activation of a block; its first row and column in the output. */
static void finish(const Product *p, const float *c, i64 row, i64 column) {
    i64 rows = p->rows - row < BLOCK ? p->rows - row : BLOCK;
    EACH(r, rows) {
        if (p->activation == GEGLU) {
            __m512 up = add(load(c + r * BLOCK, 0xffff), load(p->bias + column, 0xffff));
            __m512 gate = add(load(c + r * BLOCK + 16, 0xffff), load(p->bias + column + 16, 0xffff));
            store(p->out, p->out_float, (row + r) * p->ldout + column / 2, 0xffff, mul(up, gelu16(gate)));
            continue;
        }
        BY(j, BLOCK, LANES) {
            i64 left = p->width - column - j;
            if (left <= 0)
                break;
            __mmask16 m = first(left);
            __m512 v = add(load(c + r * BLOCK + j, m), load(p->bias + column + j, m));
            if (p->plus)
                v = add(v, load(p->plus + (row + r) * p->ldplus + column + j, m));
            if (p->activation == SILU)
                v = silu16(v);
            store(p->out, p->out_float, (row + r) * p->ldout + column + j, m, v);
        }
    }
}

static void product(const Product *p) {
    float c[BLOCK * BLOCK] __attribute__((aligned(64)));
    int direct = !p->kernel && !p->x_float && p->channels == p->depth;
    Rows at = {.lda = direct || p->border ? p->ldx : p->depth, .count = 1, .tiles = p->depth / 32};
    if (p->border) {
        at.count = p->kernel * p->kernel;
        at.tiles = p->channels / 32;
        EACH(i, at.count) at.taps[i] = (i / p->kernel * (p->w + 2) + i % p->kernel) * p->ldx;
    }
    BY(begin, p->rows, ROWS) {
        i64 rows = p->rows - begin < ROWS ? p->rows - begin : ROWS;
        const bf16 *a = direct ? (const bf16 *)p->x + begin * p->ldx : p->panel;
        if (!direct && !p->border)
            gather(p, begin, rows);
        BY(column, p->width, BLOCK) BY(r, rows, BLOCK) {
            i64 row = begin + r, next = row + 16 < p->rows ? row + 16 : row;
            at.a[0] = p->border ? bordered(p, row) : a + r * at.lda;
            at.a[1] = p->border ? bordered(p, next) : at.a[0] + 16 * at.lda;
            block(&at, p->weight + column * p->depth, c);
            finish(p, c, row, column);
        }
    }
}

/* ---------------------------------------------------------------- norms */

typedef struct {
    i64 kind;
    const float *x;
    i64 ldx, batch, places, channels, groups;
    double eps;
    const float *weight, *bias;
    const float *shift; /* (batch, channels), added before; may be null */
    const float *scale; /* (batch, channels): the result times 1 + scale; may be null */
    const float *after; /* (batch, channels), added after that; may be null */
    i64 ldfilm, activation;
    bf16 *out;
    i64 ldout;
    i64 border; /* 0, or the width of the picture, which then gets a border of zeros */
    float *room; /* (2, channels) */
} Norm;

static bf16 *place(const Norm *p, i64 row) {
    if (p->border) {
        i64 y = row / p->border, x = row % p->border; /* y: of all pictures */
        row = (y + 1 + row / p->places * 2) * (p->border + 2) + x + 1;
    }
    return p->out + row * p->ldout;
}

static void normed(const Norm *p, i64 row, const float *factor, const float *offset) {
    const float *x = p->x + row * p->ldx;
    bf16 *to = place(p, row);
    BY(c, p->channels, LANES) {
        __mmask16 m = first(p->channels - c);
        __m512 v = muladd(load(x + c, m), load(factor + c, m), load(offset + c, m));
        if (p->activation == SILU)
            v = silu16(v);
        narrow(to + c, m, v);
    }
}

static void group_norm(const Norm *p) {
    i64 size = p->channels / p->groups;
    float *factor = p->room, *offset = p->room + p->channels;
    EACH(b, p->batch) {
        const float *x = p->x + b * p->places * p->ldx;
        const float *shift = p->shift ? p->shift + b * p->ldfilm : 0;
        const float *scale = p->scale ? p->scale + b * p->ldfilm : 0;
        /* The mean of each channel, then of each group; then in the same way the variance. */
        EACH(turn, 2) BY(c, p->channels, LANES) {
            __mmask16 m = first(p->channels - c);
            __m512 sum = set(0), mean = turn ? load(offset + c, m) : set(0);
            EACH(i, p->places) {
                __m512 v = _mm512_sub_ps(load(x + i * p->ldx + c, m), mean);
                sum = turn ? muladd(v, v, sum) : add(sum, v);
            }
            _mm512_mask_storeu_ps((turn ? factor : offset) + c, m, sum);
            if (turn || c + LANES < p->channels)
                continue;
            EACH(g, p->groups) { /* offset becomes what is subtracted from x */
                double total = 0;
                EACH(k, size) total += offset[g * size + k] / p->places + (shift ? shift[g * size + k] : 0);
                EACH(k, size) offset[g * size + k] = total / size - (shift ? shift[g * size + k] : 0);
            }
        }
        EACH(g, p->groups) {
            double total = 0;
            EACH(k, size) total += factor[g * size + k];
            double spread = 1 / sqrt(total / (size * p->places) + p->eps);
            EACH(k, size) {
                i64 c = g * size + k;
                float more = scale ? 1 + scale[c] : 1;
                factor[c] = spread * p->weight[c] * more;
                offset[c] = p->bias[c] * more - offset[c] * factor[c];
            }
        }
        EACH(i, p->places) normed(p, b * p->places + i, factor, offset);
    }
}

static void layer_norm(const Norm *p) {
    i64 n = p->channels;
    EACH(row, p->batch * p->places) {
        const float *x = p->x + row * p->ldx;
        bf16 *to = place(p, row);
        i64 film = row / p->places * p->ldfilm;
        __m512 sum = set(0), squares = set(0);
        BY(c, n, LANES) sum = add(sum, load(x + c, first(n - c)));
        __m512 mean = set(_mm512_reduce_add_ps(sum) / n);
        BY(c, n, LANES) {
            __mmask16 m = first(n - c);
            __m512 v = _mm512_maskz_sub_ps(m, load(x + c, m), mean);
            squares = muladd(v, v, squares);
        }
        __m512 spread = set(1 / sqrtf(_mm512_reduce_add_ps(squares) / n + (float)p->eps));
        BY(c, n, LANES) {
            __mmask16 m = first(n - c);
            __m512 v = mul(_mm512_sub_ps(load(x + c, m), mean), spread);
            v = muladd(v, load(p->weight + c, m), load(p->bias + c, m));
            if (p->scale)
                v = muladd(v, load(p->scale + film + c, m), v);
            if (p->after)
                v = add(v, load(p->after + film + c, m));
            if (p->activation == SILU)
                v = silu16(v);
            narrow(to + c, m, v);
        }
    }
}

/* ---------------------------------------------------------------- attention, and two pictures as one */

typedef struct {
    i64 kind;
    const bf16 *q, *k, *v;
    i64 ldq, ldk, batch, heads, queries, keys, width; /* width: of a head, a multiple of 16 */
    bf16 *out;
    i64 ldout;
    float *room; /* (2 width + 4, keys + 16) */
} Attention;

static void attention(const Attention *p) {
    i64 wide_keys = (p->keys + LANES - 1) / LANES * LANES, d = p->width;
    float *across = p->room, *values = across + d * wide_keys, *maps = values + d * wide_keys;
    float factor = 1 / sqrtf(d);
    memset(across, 0, 4 * d * wide_keys);
    EACH(b, p->batch) EACH(head, p->heads) {
        EACH(j, p->keys) BY(c, d, LANES) {
            i64 at = (b * p->keys + j) * p->ldk + head * d + c;
            float key[LANES];
            _mm512_storeu_ps(key, wide(p->k + at, 0xffff));
            EACH(i, LANES) across[(c + i) * wide_keys + j] = key[i];
            _mm512_storeu_ps(values + j * d + c, wide(p->v + at, 0xffff));
        }
        BY(query, p->queries, 4) { /* four at once; the last one again where there are fewer */
            float q[4][256];
            i64 row[4];
            EACH(n, 4) {
                i64 at = query + n < p->queries ? query + n : p->queries - 1;
                row[n] = b * p->queries + at;
                BY(c, d, LANES) {
                    __m512 v = wide(p->q + row[n] * p->ldq + head * d + c, 0xffff);
                    _mm512_storeu_ps(q[n] + c, mul(v, set(factor)));
                }
            }
            __m512 most[4], total[4];
            EACH(n, 4) most[n] = set(-INFINITY), total[n] = set(0);
            BY(j, p->keys, LANES) {
                __m512 sums[4] = {set(0), set(0), set(0), set(0)};
                EACH(c, d) {
                    __m512 key = load(across + c * wide_keys + j, 0xffff);
                    EACH(n, 4) sums[n] = muladd(set(q[n][c]), key, sums[n]);
                }
                __mmask16 m = first(p->keys - j);
                EACH(n, 4) {
                    _mm512_storeu_ps(maps + n * wide_keys + j, sums[n]);
                    most[n] = _mm512_mask_max_ps(most[n], m, most[n], sums[n]);
                }
            }
            EACH(n, 4) {
                __m512 top = set(_mm512_reduce_max_ps(most[n]));
                BY(j, p->keys, LANES) {
                    float *at = maps + n * wide_keys + j;
                    __m512 e = exp16(_mm512_sub_ps(load(at, 0xffff), top));
                    _mm512_storeu_ps(at, e);
                    total[n] = _mm512_mask_add_ps(total[n], first(p->keys - j), total[n], e);
                }
            }
            BY(c, d, LANES) {
                __m512 sums[4] = {set(0), set(0), set(0), set(0)};
                EACH(j, p->keys) {
                    __m512 value = load(values + j * d + c, 0xffff);
                    EACH(n, 4) sums[n] = muladd(set(maps[n * wide_keys + j]), value, sums[n]);
                }
                EACH(n, 4) {
                    __m512 share = set(1 / _mm512_reduce_add_ps(total[n]));
                    narrow(p->out + row[n] * p->ldout + head * d + c, 0xffff, mul(sums[n], share));
                }
            }
        }
    }
}

typedef struct {
    i64 kind;
    const float *a, *b;
    i64 a_channels, b_channels, batch, a_h, a_w, h, w; /* a is enlarged to the size of b */
    float *out;
} Join;

static void join(const Join *p) {
    float *to = p->out;
    const float *other = p->b;
    EACH(b, p->batch) EACH(y, p->h) EACH(x, p->w) {
        i64 from = (b * p->a_h + y * p->a_h / p->h) * p->a_w + x * p->a_w / p->w;
        memcpy(to, p->a + from * p->a_channels, 4 * p->a_channels);
        memcpy(to + p->a_channels, other, 4 * p->b_channels);
        to += p->a_channels + p->b_channels;
        other += p->b_channels;
    }
}

/* ---------------------------------------------------------------- what Python calls */

/* 0 if this process may use what it was compiled for. */
int allowed(void) {
#ifdef USE_AMX
    return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tiles */);
#else
    return 0;
#endif
}

/* `count` operations, each of `size` numbers of 64 bits. */
void run(const i64 *operations, i64 count, i64 size) {
#ifdef USE_AMX
    struct {
        uint8_t palette, row, rest[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    EACH(i, 8) tiles.bytes[i] = 64, tiles.rows[i] = 16;
    _tile_loadconfig(&tiles);
#endif
    EACH(i, count) {
        const i64 *at = operations + i * size;
        switch (*at) {
        case PRODUCT: product((const Product *)at); break;
        case GROUP_NORM: group_norm((const Norm *)at); break;
        case LAYER_NORM: layer_norm((const Norm *)at); break;
        case ATTENTION: attention((const Attention *)at); break;
        case JOIN: join((const Join *)at); break;
        }
    }
#ifdef USE_AMX
    _tile_release();
#endif
}
