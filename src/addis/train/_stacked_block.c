/* Blocks of a small net for many copies of it: convolution, batch normalisation, ReLU, max-pooling.
 *
 * Maps are (copies, channels, height, width, images): a vector holds one pixel of several images,
 * so any number of channels fills it. The copies are worked on one by one, so that the maps of one
 * stay in a cache from step to step, and no copy reads another's numbers.
 *
 * Plain C with the vectors of GCC and Clang, compiled on the machine that it runs on, with
 * -DNUMBER=float or double.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef NUMBER number;

/* Sums of IMAGES images and up to CHANNELS output channels at a time take half of the registers. */
#if defined(__AVX512F__)
enum { LANES = 64 / sizeof(number), VECTORS = 2, CHANNELS = 8 };
#else
enum { LANES = 32 / sizeof(number), VECTORS = 2, CHANNELS = 4 };
#endif
enum { IMAGES = LANES * VECTORS, TAPS = 3, TILE_BYTES = 1 << 18, BAND_BYTES = 1 << 14 };

typedef number vec __attribute__((vector_size(LANES * sizeof(number))));
typedef number loose __attribute__((vector_size(LANES * sizeof(number)), aligned(sizeof(number))));

/* GCC would read x from memory again for each product. */
#if defined(__AVX__)
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#else
#define IN_REGISTER(x) (void)(x)
#endif

#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

/* One copy's part in a block. */
typedef struct {
  int64_t in, out;               /* channels */
  int64_t images, height, width; /* of the input */
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t rows, columns;         /* of the convolution's output */
  int64_t window[2];             /* of the pooling, and its stride; 1 x 1 for none */
  int64_t convolves, normalises, rectifies, batch_statistics, shared_input;
  double eps;
} Block;

/* The convolution of one copy, or the one that gives its input's gradient: there `spread` is the
 * stride, and spread - 1 zeros stand between the pixels. */
typedef struct {
  int64_t in, out, images, height, width;
  int64_t kernel[2], stride[2], padding[2], dilation[2], spread[2];
  int64_t rows, columns;
} Convolution;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static void *room(int64_t numbers) {
  int64_t bytes = (numbers * (int64_t)sizeof(number) + 127) / 64 * 64;
  return aligned_alloc(64, bytes);
}

/* Rows and columns of input that `rows` x `columns` outputs see. */
static int64_t seen(const Convolution *c, int axis, int64_t outputs) {
  return (outputs - 1) * c->stride[axis] + (c->kernel[axis] - 1) * c->dilation[axis] + 1;
}

/* Rows of outputs for which tiles of `channels` channels stay in a cache. */
static int64_t strip(const Convolution *c, int64_t channels) {
  int64_t row = channels * seen(c, 1, c->columns) * IMAGES * (int64_t)sizeof(number);
  int64_t rows = (TILE_BYTES / row - seen(c, 0, 1)) / c->stride[0] + 1;
  return smaller(rows < 4 ? 4 : rows, c->rows);
}

/* Copies `channels` of maps, from image `first` and row `top` on, to a tile (channels, tall, wide,
 * IMAGES), with zeros outside of the maps and after the last image. */
static void pack(const number *maps, number *tile, const Convolution *c, int64_t first, int64_t top,
                 int64_t tall, int64_t wide) {
  int64_t images = smaller(c->images - first, IMAGES);
  int64_t cells = wide * IMAGES;
  for (int64_t channel = 0; channel < c->in; channel++)
    for (int64_t row = 0; row < tall; row++, tile += cells) {
      int64_t y = top + row - c->padding[0];
      if (y < 0 || y % c->spread[0] || y / c->spread[0] >= c->height) {
        memset(tile, 0, cells * sizeof(number));
        continue;
      }
      const number *from =
          maps + (channel * c->height + y / c->spread[0]) * c->width * c->images + first;
      int64_t step = c->spread[1] * IMAGES, left = smaller(c->padding[1], wide);
      int64_t width = smaller(c->width, (wide - left + c->spread[1] - 1) / c->spread[1]);
      int64_t end = left * IMAGES + width * step;
      int gaps = c->spread[1] > 1 || images < IMAGES;
      memset(tile, 0, (gaps ? cells : left * IMAGES) * sizeof(number));
      if (end < cells) memset(tile + end, 0, (cells - end) * sizeof(number));
      number *to = tile + left * IMAGES;
      if (images == IMAGES)
        for (int64_t x = 0; x < width; x++, to += step, from += c->images)
          memcpy(to, from, IMAGES * sizeof(number));
      else
        for (int64_t x = 0; x < width; x++, to += step, from += c->images)
          memcpy(to, from, images * sizeof(number));
    }
}

/* Calls `call(n, more)` with both constants, which lets the compiler keep the sums in registers.
 * `n` is at most CHANNELS, and no code is made for more. */
#define WITH(n, more, call)   \
  if (more) {                 \
    WITH_CHANNELS(n, call, 1) \
  } else {                    \
    WITH_CHANNELS(n, call, 0) \
  }
#define WITH_CHANNELS(n, call, more)                        \
  switch (n) {                                              \
    case 1: call(1, more); break;                           \
    case 2: call(2, more); break;                           \
    case 3: call(3, more); break;                           \
    case 4: call(4, more); break;                           \
    case 5: call(5 <= CHANNELS ? 5 : 1, more); break;       \
    case 6: call(6 <= CHANNELS ? 6 : 1, more); break;       \
    case 7: call(7 <= CHANNELS ? 7 : 1, more); break;       \
    default: call(CHANNELS, more);                          \
  }

/* `pixels` neighbours of `channels` output channels. */
INLINE void outputs(const number *tile, const number *weight, const number *bias, number *to,
                    const Convolution *c, int64_t tall, int64_t wide, int64_t images,
                    const int channels, const int pixels) {
  vec sum[CHANNELS][2][VECTORS];
  UNROLLED for (int o = 0; o < channels; o++) {
    vec start = (vec){0} + (bias ? bias[o] : (number)0);
    UNROLLED for (int p = 0; p < pixels; p++)
      UNROLLED for (int v = 0; v < VECTORS; v++) sum[o][p][v] = start;
  }
  for (int64_t i = 0; i < c->in; i++)
    for (int64_t ky = 0; ky < c->kernel[0]; ky++)
      for (int64_t kx = 0; kx < c->kernel[1]; kx++, weight += channels) {
        const number *cell =
            tile + ((i * tall + ky * c->dilation[0]) * wide + kx * c->dilation[1]) * IMAGES;
        UNROLLED for (int p = 0; p < pixels; p++)
          UNROLLED for (int v = 0; v < VECTORS; v++) {
            vec x = *(const vec *)(cell + p * c->stride[1] * IMAGES + v * LANES);
            IN_REGISTER(x);
            UNROLLED for (int o = 0; o < channels; o++) sum[o][p][v] += weight[o] * x;
          }
      }
  int64_t map = c->rows * c->columns * c->images;
  UNROLLED for (int o = 0; o < channels; o++)
    UNROLLED for (int p = 0; p < pixels; p++) {
      number *pixel = to + o * map + p * c->images;
      UNROLLED for (int v = 0; v < VECTORS; v++) {
        int64_t rest = images - v * LANES;
        if (rest >= LANES)
          *(loose *)(pixel + v * LANES) = sum[o][p][v];
        else
          for (int64_t k = 0; k < rest; k++) pixel[v * LANES + k] = sum[o][p][v][k];
      }
    }
}

/* `weight` as (out, in, ky, kx), or turned round for the gradient of the input, in the order in
 * which `outputs` reads it. */
static void pack_weight(const number *weight, number *packed, const Convolution *c, int turned) {
  int64_t taps = c->kernel[0] * c->kernel[1];
  for (int64_t o = 0; o < c->out; o += CHANNELS)
    for (int64_t i = 0; i < c->in; i++)
      for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t k = o; k < smaller(o + CHANNELS, c->out); k++)
          *packed++ = turned ? weight[(i * c->out + k) * taps + taps - 1 - tap]
                             : weight[(k * c->in + i) * taps + tap];
}

static int convolve(const number *maps, const number *weight, const number *bias, number *to,
                    const Convolution *c, int turned) {
  int64_t taps = c->in * c->kernel[0] * c->kernel[1], wide = seen(c, 1, c->columns);
  int64_t rows = strip(c, c->in), tallest = seen(c, 0, rows);
  number *tile = room(c->in * tallest * wide * IMAGES), *packed = room(c->out * taps);
  int failed = !tile || !packed;
  if (!failed) pack_weight(weight, packed, c, turned);
  for (int64_t first = 0; !failed && first < c->images; first += IMAGES)
    for (int64_t top = 0; top < c->rows; top += rows) {
      int64_t height = smaller(rows, c->rows - top), tall = seen(c, 0, height);
      int64_t images = smaller(c->images - first, IMAGES);
      pack(maps, tile, c, first, top * c->stride[0], tall, wide);
      for (int64_t o = 0; o < c->out; o += CHANNELS) {
        const number *w = packed + o * taps, *b = bias ? bias + o : 0;
        int64_t channels = smaller(c->out - o, CHANNELS);
        for (int64_t row = 0; row < height; row++)
          for (int64_t column = 0; column < c->columns;) {
            int pair = 2 * channels <= CHANNELS && column + 1 < c->columns;
            const number *from =
                tile + (row * c->stride[0] * wide + column * c->stride[1]) * IMAGES;
            number *pixel =
                to + ((o * c->rows + top + row) * c->columns + column) * c->images + first;
#define OUTPUTS(n, more)                                    \
  outputs(from, w, b, pixel, c, tall, wide, images,         \
          more && 2 * (n) > CHANNELS ? 1 : n, 1 + more)
            WITH(channels, pair, OUTPUTS)
#undef OUTPUTS
            column += pair ? 2 : 1;
          }
      }
    }
  free(tile);
  free(packed);
  return failed;
}

/* Adds the products of `channels` gradients and `taps` neighbouring inputs over `rows`. */
INLINE void products(const number *tile, const number *gradient, vec *to, const Convolution *c,
                     int64_t rows, int64_t wide, int64_t spare, int64_t map, int64_t filter,
                     const int channels, const int taps) {
  vec sum[CHANNELS][TAPS];
  UNROLLED for (int o = 0; o < channels; o++)
    UNROLLED for (int k = 0; k < taps; k++) sum[o][k] = to[o * filter + k];
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t column = 0; column < c->columns; column++)
      UNROLLED for (int v = 0; v < VECTORS; v++) {
        vec x[TAPS];
        UNROLLED for (int k = 0; k < taps; k++)
          x[k] = *(const vec *)(tile + (column * c->stride[1] + k * c->dilation[1]) * IMAGES +
                                v * LANES);
        UNROLLED for (int o = 0; o < channels; o++) {
          vec g = *(const vec *)(gradient + o * map + column * IMAGES + v * LANES);
          IN_REGISTER(g);
          UNROLLED for (int k = 0; k < taps; k++) sum[o][k] += g * x[k];
        }
      }
    tile += c->stride[0] * wide * IMAGES;
    gradient += spare * IMAGES;
  }
  UNROLLED for (int o = 0; o < channels; o++)
    UNROLLED for (int k = 0; k < taps; k++) to[o * filter + k] = sum[o][k];
}

static number total(vec v) {
  number sum = 0;
  for (int i = 0; i < LANES; i++) sum += v[i];
  return sum;
}

/* The gradients of weight and bias from `gradient` (out, rows, columns, images). */
static int weight_gradient(const number *maps, const number *gradient, number *weight, number *bias,
                           const Convolution *c) {
  int64_t filter = c->in * c->kernel[0] * c->kernel[1], wide = seen(c, 1, c->columns);
  int64_t rows = strip(c, c->in + c->out), tallest = seen(c, 0, rows);
  Convolution of = {.in = c->out, .images = c->images, .height = c->rows, .width = c->columns,
                    .spread = {1, 1}};
  number *tile = room(c->in * tallest * wide * IMAGES);
  /* Columns end in a spare one: maps apart by a power of two would share lines of the cache. */
  int64_t spare = c->columns + 1;
  int64_t band = BAND_BYTES / (CHANNELS * spare * IMAGES * (int64_t)sizeof(number));
  if (band < 1) band = 1;
  number *other = room(c->out * rows * spare * IMAGES);
  vec *sum = room((c->out * filter + c->out) * LANES), *sum_bias = sum + c->out * filter;
  int failed = !tile || !other || !sum;
  if (!failed) memset(sum, 0, (c->out * filter + c->out) * sizeof(vec));
  for (int64_t first = 0; !failed && first < c->images; first += IMAGES)
    for (int64_t top = 0; top < c->rows; top += rows) {
      int64_t height = smaller(rows, c->rows - top), tall = seen(c, 0, height);
      int64_t map = height * spare * IMAGES;
      pack(maps, tile, c, first, top * c->stride[0], tall, wide);
      pack(gradient, other, &of, first, top, height, spare);
      for (int64_t o = 0; o < c->out; o++)
        for (int64_t i = 0; i < height * spare * VECTORS; i++)
          sum_bias[o] += ((vec *)(other + o * map))[i];
      for (int64_t row = 0; row < height; row += band)
        for (int64_t o = 0; o < c->out; o += CHANNELS) {
          int64_t deep = smaller(band, height - row), channels = smaller(c->out - o, CHANNELS);
          const number *g = other + o * map + row * spare * IMAGES;
          for (int64_t i = 0; i < c->in; i++)
            for (int64_t ky = 0; ky < c->kernel[0]; ky++)
              for (int64_t kx = 0; kx < c->kernel[1];) {
                int three = kx + TAPS <= c->kernel[1];
                vec *to = sum + o * filter + (i * c->kernel[0] + ky) * c->kernel[1] + kx;
                int64_t y = row * c->stride[0] + ky * c->dilation[0];
                const number *x = tile + ((i * tall + y) * wide + kx * c->dilation[1]) * IMAGES;
#define PRODUCTS(n, more) \
  products(x, g, to, c, deep, wide, spare, map, filter, n, more ? TAPS : 1)
                WITH(channels, three, PRODUCTS)
#undef PRODUCTS
                kx += three ? TAPS : 1;
              }
        }
    }
  for (int64_t i = 0; !failed && weight && i < c->out * filter; i++) weight[i] = total(sum[i]);
  for (int64_t o = 0; !failed && bias && o < c->out; o++) bias[o] = total(sum_bias[o]);
  free(tile);
  free(other);
  free(sum);
  return failed;
}

/* Sums of a - a0 and of (a - a0)(b - b0); in double over runs short enough for floats. */
static void sums(const number *a, number a0, const number *b, number b0, int64_t count, double *sum,
                 double *product) {
  enum { RUN = 4096 };
  *sum = *product = 0;
  for (int64_t start = 0; start < count; start += RUN) {
    int64_t end = smaller(start + RUN, count), i = start;
    vec s[2] = {{0}}, p[2] = {{0}};
    for (; i + 2 * LANES <= end; i += 2 * LANES)
      for (int k = 0; k < 2; k++) {
        vec x = *(const loose *)(a + i + k * LANES) - a0;
        s[k] += x;
        p[k] += x * (*(const loose *)(b + i + k * LANES) - b0);
      }
    *sum += total(s[0] + s[1]);
    *product += total(p[0] + p[1]);
    for (; i < end; i++) {
      *sum += a[i] - a0;
      *product += (a[i] - a0) * (b[i] - b0);
    }
  }
}

/* What the steps after the convolution need of one channel: u = scale * z + shift. */
typedef struct {
  number scale, shift, mean, inverse; /* inverse of the standard deviation */
} Channel;

static Channel channel(const Block *b, const number *gamma, const number *beta, const number *mean,
                       const number *variance, int64_t o) {
  if (!b->normalises) return (Channel){1, 0, 0, 1};
  number inverse = 1 / sqrt(variance[o] + b->eps);
  number scale = gamma ? gamma[o] * inverse : inverse;
  return (Channel){scale, (beta ? beta[o] : 0) - mean[o] * scale, mean[o], inverse};
}

/* Whether a window's maximum moves on to v; a NaN stays. */
#define EXCEEDS(v, most) ((((v) > (most)) | ((v) != (v))))

/* Lifts the maxima so far to the u of one more cell. A function of its own, as GCC vectorises no
 * loop in a nest that it cannot tell to be free of aliases. */
static __attribute__((noinline)) void lift(const number *restrict z, int64_t n, Channel c,
                                            number *restrict most) {
  for (int64_t i = 0; i < n; i++) {
    number v = z[i] * c.scale + c.shift;
    most[i] = EXCEEDS(v, most[i]) ? v : most[i];
  }
}

/* One channel's outputs (rows / window, columns / window, images) from its z. */
static void finish(const number *restrict z, number *restrict y, const Block *b, Channel c) {
  int64_t n = b->images, high = b->window[0], wide = b->window[1];
  int64_t outputs = (b->rows / high) * (b->columns / wide) * n;
  if (high * wide == 1) {
    for (int64_t i = 0; i < outputs; i++) y[i] = z[i] * c.scale + c.shift;
  } else {
    number *to = y;
    for (int64_t row = 0; row + high <= b->rows; row += high)
      for (int64_t column = 0; column + wide <= b->columns; column += wide, to += n) {
        for (int64_t i = 0; i < n; i++) to[i] = -INFINITY;
        for (int64_t cell = 0; cell < high * wide; cell++) {
          const number *from = z + ((row + cell / wide) * b->columns + column + cell % wide) * n;
          lift(from, n, c, to);
        }
      }
  }
  if (b->rectifies)
    for (int64_t i = 0; i < outputs; i++) y[i] = y[i] < 0 ? 0 : y[i];
}

/* As `lift`, and keeps `where` the maximum is: which cell of the window. */
static __attribute__((noinline)) void lift_and_mark(const number *restrict z, int64_t n, Channel c,
                                            int32_t cell, number *restrict most,
                                            int32_t *restrict where) {
  for (int64_t i = 0; i < n; i++) {
    number v = z[i] * c.scale + c.shift;
    int moves = EXCEEDS(v, most[i]);
    most[i] = moves ? v : most[i];
    where[i] = moves ? cell : where[i];
  }
}

/* The gradient of one channel's u (rows, columns, images) from that of its outputs; `most` and
 * `where` have room for one pixel of all images. */
static void unfinish(const number *restrict z, const number *restrict gradient, number *restrict to,
                     const Block *b, Channel c, number *restrict most, int32_t *restrict where) {
  int64_t n = b->images, high = b->window[0], wide = b->window[1];
  int rectifies = b->rectifies != 0;
  if (high * wide == 1) {
    int64_t count = b->rows * b->columns * n;
    for (int64_t i = 0; i < count; i++)
      to[i] = rectifies && z[i] * c.scale + c.shift <= 0 ? 0 : gradient[i];
    return;
  }
  if (b->rows % high || b->columns % wide)
    memset(to, 0, b->rows * b->columns * n * sizeof(number));
  for (int64_t row = 0; row + high <= b->rows; row += high)
    for (int64_t column = 0; column + wide <= b->columns; column += wide, gradient += n) {
      for (int64_t i = 0; i < n; i++) most[i] = -INFINITY, where[i] = 0;
      for (int32_t cell = 0; cell < high * wide; cell++) {
        const number *from = z + ((row + cell / wide) * b->columns + column + cell % wide) * n;
        lift_and_mark(from, n, c, cell, most, where);
      }
      for (int64_t i = 0; i < n; i++) most[i] = rectifies && most[i] <= 0 ? 0 : gradient[i];
      for (int32_t cell = 0; cell < high * wide; cell++) {
        number *pixel = to + ((row + cell / wide) * b->columns + column + cell % wide) * n;
        for (int64_t i = 0; i < n; i++) pixel[i] = where[i] == cell ? most[i] : 0;
      }
    }
}

static Convolution convolution(const Block *b) {
  return (Convolution){
      .in = b->in, .out = b->out, .images = b->images, .height = b->height, .width = b->width,
      .kernel = {b->kernel[0], b->kernel[1]}, .stride = {b->stride[0], b->stride[1]},
      .padding = {b->padding[0], b->padding[1]}, .dilation = {b->dilation[0], b->dilation[1]},
      .spread = {1, 1}, .rows = b->rows, .columns = b->columns};
}

static Convolution turned(const Block *b) {
  return (Convolution){
      .in = b->out, .out = b->in, .images = b->images, .height = b->rows, .width = b->columns,
      .kernel = {b->kernel[0], b->kernel[1]}, .stride = {1, 1},
      .padding = {(b->kernel[0] - 1) * b->dilation[0] - b->padding[0],
                  (b->kernel[1] - 1) * b->dilation[1] - b->padding[1]},
      .dilation = {b->dilation[0], b->dilation[1]}, .spread = {b->stride[0], b->stride[1]},
      .rows = b->height, .columns = b->width};
}

/* Numbers of one copy. */
typedef struct {
  int64_t x, weight, z, y;
} Sizes;

static Sizes sizes(const Block *b) {
  return (Sizes){b->shared_input ? 0 : b->in * b->height * b->width * b->images,
                 b->in * b->kernel[0] * b->kernel[1] * b->out,
                 b->out * b->rows * b->columns * b->images,
                 b->out * (b->rows / b->window[0]) * (b->columns / b->window[1]) * b->images};
}

static int finishes(const Block *b) {
  return b->normalises || b->rectifies || b->window[0] * b->window[1] > 1;
}

/* Copies `start` to `end`. `z`, the convolution's output, may be null where nobody needs it later;
 * without a convolution it is not used. Mean and biased variance are written if they are those of
 * this batch, else read. Returns whether memory ran out. */
int block_forward(const Block *b, const number *x, const number *weight, const number *bias,
                  const number *gamma, const number *beta, number *mean, number *variance,
                  number *z, number *y, int64_t start, int64_t end) {
  Convolution c = convolution(b);
  Sizes size = sizes(b);
  int64_t map = b->rows * b->columns * b->images, last = size.y / b->out;
  number *scratch = b->convolves && finishes(b) && !z ? room(size.z) : 0;
  int failed = b->convolves && finishes(b) && !z && !scratch;
  for (int64_t copy = start; !failed && copy < end; copy++) {
    const number *from = x + copy * size.x;
    number *to = y + copy * size.y;
    if (b->convolves) {
      number *kept = !finishes(b) ? to : z ? z + copy * size.z : scratch;
      failed = convolve(from, weight + copy * size.weight, bias ? bias + copy * b->out : 0, kept,
                        &c, 0);
      from = kept;
    }
    if (!finishes(b)) continue;
    for (int64_t o = 0; !failed && o < b->out; o++) {
      int64_t at = copy * b->out + o;
      if (b->batch_statistics) {
        double sum, square;
        sums(from + o * map, 0, from + o * map, 0, map, &sum, &square);
        mean[at] = sum / map;
        sums(from + o * map, mean[at], from + o * map, mean[at], map, &sum, &square);
        variance[at] = square / map;
      }
      finish(from + o * map, to + o * last, b, channel(b, gamma, beta, mean, variance, at));
    }
  }
  free(scratch);
  return failed;
}

/* Gradients of copies `start` to `end`; each may be null where nobody needs it. `z` is the input
 * where there is no convolution. */
int block_backward(const Block *b, const number *x, const number *z, const number *weight,
                   const number *gamma, const number *beta, const number *mean,
                   const number *variance, const number *gradient, number *grad_x,
                   number *grad_weight, number *grad_bias, number *grad_gamma, number *grad_beta,
                   int64_t start, int64_t end) {
  Convolution c = convolution(b), back = turned(b);
  Sizes size = sizes(b);
  int64_t map = b->rows * b->columns * b->images, last = size.y / b->out;
  int apart = finishes(b) && (b->convolves || !grad_x);
  number *scratch = apart ? room(size.z) : 0;
  number *most = room(b->images);
  int32_t *where = room(b->images);
  int failed = !most || !where || (apart && !scratch);
  for (int64_t copy = start; !failed && copy < end; copy++) {
    const number *from = gradient + copy * size.y;
    number *to = apart ? scratch : grad_x + copy * size.x;
    for (int64_t o = 0; finishes(b) && o < b->out; o++) {
      int64_t at = copy * b->out + o;
      const number *value = z + copy * size.z + o * map;
      number *g = to + o * map;
      Channel ch = channel(b, gamma, beta, mean, variance, at);
      unfinish(value, from + o * last, g, b, ch, most, where);
      if (!b->normalises) continue;
      double sum, product;
      sums(g, 0, value, ch.mean, map, &sum, &product);
      if (grad_gamma) grad_gamma[at] = product * ch.inverse;
      if (grad_beta) grad_beta[at] = sum;
      number level = b->batch_statistics ? sum / map : 0;
      number slope = b->batch_statistics ? product * ch.inverse * ch.inverse / map : 0;
      for (int64_t i = 0; i < map; i++)
        g[i] = ch.scale * (g[i] - level - (value[i] - ch.mean) * slope);
    }
    if (!b->convolves) continue;
    const number *g = finishes(b) ? scratch : from;
    if (grad_weight || grad_bias)
      failed = weight_gradient(x + copy * size.x, g,
                               grad_weight ? grad_weight + copy * size.weight : 0,
                               grad_bias ? grad_bias + copy * b->out : 0, &c);
    if (!failed && grad_x)
      failed = convolve(g, weight + copy * size.weight, 0, grad_x + copy * size.x, &back, 1);
  }
  free(scratch);
  free(most);
  free(where);
  return failed;
}
