// Small fused kernels for float32 on CPUs: what a decode step does between its matrix products.
//
// Axes: row, head, column, d_head. Every function is a loop over rows, shared out by OpenMP, and allocates nothing.
// Compiled once per machine by kernels/native.py; without a compiler, PyTorch's own operations do the same.

#include <cmath>
#include <cstdint>

namespace {

constexpr int64_t W = 16;  // floats per vector; compilers split it where registers are narrower
typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));

inline vec load(const float *p) { return *reinterpret_cast<const vec *>(p); }
inline void store(float *p, vec v) { *reinterpret_cast<vec *>(p) = v; }
inline vec splat(float x) { return x - vec{}; }
inline vec larger(vec a, vec b) { return a > b ? a : b; }

// Halves are folded onto each other: a chain of 16 additions would wait for each.
typedef float half __attribute__((vector_size(32), aligned(4), may_alias));
typedef float quarter __attribute__((vector_size(16), aligned(4), may_alias));
inline half low(vec v) { return *reinterpret_cast<const half *>(&v); }
inline half high(vec v) { return *(reinterpret_cast<const half *>(&v) + 1); }
inline quarter low(half v) { return *reinterpret_cast<const quarter *>(&v); }
inline quarter high(half v) { return *(reinterpret_cast<const quarter *>(&v) + 1); }

inline float sum(vec v) {
    half h = low(v) + high(v);
    quarter q = low(h) + high(h);
    return (q[0] + q[1]) + (q[2] + q[3]);
}

inline float largest(vec v) {
    half a = low(v), b = high(v), h = a > b ? a : b;
    quarter c = low(h), d = high(h), q = c > d ? c : d;
    float x = q[0] > q[1] ? q[0] : q[1], y = q[2] > q[3] ? q[2] : q[3];
    return x > y ? x : y;
}

inline bool any(ivec v) {
    typedef int64_t words __attribute__((vector_size(64), may_alias));
    words w = (words)v;
    return ((w[0] | w[1]) | (w[2] | w[3]) | (w[4] | w[5]) | (w[6] | w[7])) != 0;
}

// e^x as 2^n times a polynomial (Cephes); relative error about 1e-7. Below -87 it is 0 to float32's precision.
inline vec exp(vec x) {
    x = x < splat(-87.0f) ? splat(-87.0f) : x;
    x = x > splat(88.0f) ? splat(88.0f) : x;
    vec shifted = x * 1.44269504088896341f + 12582912.0f;
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f - n * -2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)(((ivec)shifted - 0x4B400000 + 127) << 23);  // vector casts keep the bits
}

inline vec tanh(vec x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

// gelu, tanh approximation
inline vec gelu(vec x) { return 0.5f * x * (1.0f + tanh(0.79788456080286536f * (x + 0.044715f * x * x * x))); }
inline vec silu(vec x) { return x / (1.0f + exp(-x)); }

// The part of a vector that lies in n floats, the rest 0.
inline vec load_some(const float *p, int64_t n) {
    vec v = {};
    for (int64_t i = 0; i < n && i < W; i++) v[i] = p[i];
    return v;
}
inline void store_some(float *p, vec v, int64_t n) {
    for (int64_t i = 0; i < n && i < W; i++) p[i] = v[i];
}

template <vec (*act)(vec)>
void gated(const float *gate, const float *up, float *out, int64_t n) {
    constexpr int64_t chunk = 4096;
#pragma omp parallel for schedule(static)
    for (int64_t from = 0; from < n; from += chunk) {
        int64_t to = from + chunk < n ? from + chunk : n, i = from;
        for (; i + W <= to; i += W) store(out + i, act(load(gate + i)) * load(up + i));
        if (i < to) store_some(out + i, act(load_some(gate + i, to - i)) * load_some(up + i, to - i), to - i);
    }
}

struct Attention {
    // shapes: q (row, t, head, d) with strides; k, v (row, t, kv_head, d) with strides; own (slot, kv_head, capacity, d);
    // prefix_k (kv_head, d, prefix_padded), prefix_v (kv_head, prefix, d); out (row, t, head, d) contiguous
    const float *q, *k, *v, *prefix_k, *prefix_v;
    float *own_k, *own_v, *out;
    const int64_t *lengths;  // of each row: own tokens before this pass
    int64_t rows, t, heads, kv_heads, d, capacity, prefix, prefix_padded, window;
    int64_t q_row, q_t, q_head, k_row, k_t, k_head, v_row, v_t, v_head;
    float scale, softcap;
};

constexpr int64_t TILE = 512;   // keys whose scores are held at once
constexpr int64_t MAX_D = 512;  // of a head

// Scores of Q queries against prefix keys [from, to), to a multiple of W.
template <int Q>
inline void prefix_scores(const Attention &a, const float *const *q, const float *keys, int64_t from, int64_t to,
                          float (*scores)[TILE]) {
    int64_t at = from;
    for (; at + 2 * W <= to; at += 2 * W) {
        vec s[Q][2] = {};
        for (int64_t i = 0; i < a.d; i++) {
            vec k0 = load(keys + i * a.prefix_padded + at), k1 = load(keys + i * a.prefix_padded + at + W);
            for (int g = 0; g < Q; g++) {
                s[g][0] += q[g][i] * k0;
                s[g][1] += q[g][i] * k1;
            }
        }
        for (int g = 0; g < Q; g++) {
            store(&scores[g][at - from], s[g][0] * a.scale);
            store(&scores[g][at - from + W], s[g][1] * a.scale);
        }
    }
    for (; at < to; at += W) {
        vec s[Q] = {};
        for (int64_t i = 0; i < a.d; i++) {
            vec k = load(keys + i * a.prefix_padded + at);
            for (int g = 0; g < Q; g++) s[g] += q[g][i] * k;
        }
        for (int g = 0; g < Q; g++) store(&scores[g][at - from], s[g] * a.scale);
    }
}

// Scores of Q queries against n keys that lie as (key, d), put down from `at` on.
template <int Q>
inline void own_scores(const Attention &a, const float *const *q, const float *keys, int64_t n, float (*scores)[TILE],
                       int64_t at) {
    for (int64_t k = 0; k < n; k++) {
        vec s[Q] = {};
        int64_t i = 0;
        for (; i + W <= a.d; i += W) {
            vec key = load(keys + k * a.d + i);
            for (int g = 0; g < Q; g++) s[g] += load(q[g] + i) * key;
        }
        if (i < a.d) {
            vec key = load_some(keys + k * a.d + i, a.d - i);
            for (int g = 0; g < Q; g++) s[g] += load_some(q[g] + i, a.d - i) * key;
        }
        for (int g = 0; g < Q; g++) scores[g][at + k] = sum(s[g]) * a.scale;
    }
}

// acc += weights · values, over n values that lie as (key, d); their weights begin at `at`.
template <int Q>
inline void add_values(const Attention &a, const float *values, int64_t n, const float (*weights)[TILE], int64_t at,
                       float *acc) {
    int64_t i = 0;
    for (; i + 4 * W <= a.d; i += 4 * W) {
        vec s[Q][4];
        for (int g = 0; g < Q; g++)
            for (int j = 0; j < 4; j++) s[g][j] = load(acc + g * a.d + i + j * W);
        for (int64_t k = 0; k < n; k++) {
            const float *v = values + k * a.d + i;
            for (int j = 0; j < 4; j++) {
                vec value = load(v + j * W);
                for (int g = 0; g < Q; g++) s[g][j] += weights[g][at + k] * value;
            }
        }
        for (int g = 0; g < Q; g++)
            for (int j = 0; j < 4; j++) store(acc + g * a.d + i + j * W, s[g][j]);
    }
    for (; i < a.d; i += W) {
        int64_t left = a.d - i;
        vec s[Q];
        for (int g = 0; g < Q; g++) s[g] = load_some(acc + g * a.d + i, left);
        for (int64_t k = 0; k < n; k++) {
            vec value = load_some(values + k * a.d + i, left);
            for (int g = 0; g < Q; g++) s[g] += weights[g][at + k] * value;
        }
        for (int g = 0; g < Q; g++) store_some(acc + g * a.d + i, s[g], left);
    }
}

// The running softmax over tiles of keys: largest score so far, sum of weights, weighted sum of values.
template <int Q>
struct Softmax {
    float high[Q], total[Q];
    float *acc;
    int64_t d;

    Softmax(float *out, int64_t d) : acc(out), d(d) {
        for (int g = 0; g < Q; g++) high[g] = -INFINITY, total[g] = 0;
        for (int64_t i = 0; i < Q * d; i++) acc[i] = 0;
    }

    // Scores of n keys become weights; what was added before is rescaled where the largest score has grown.
    void weigh(const Attention &a, float (*scores)[TILE], int64_t n) {
        int64_t padded = (n + W - 1) / W * W;
        for (int g = 0; g < Q; g++) {
            if (a.softcap > 0)
                for (int64_t k = 0; k < padded; k += W)
                    store(&scores[g][k], tanh(load(&scores[g][k]) / a.softcap) * a.softcap);
            for (int64_t k = n; k < padded; k++) scores[g][k] = -INFINITY;
            vec m = splat(-INFINITY);
            for (int64_t k = 0; k < padded; k += W) m = larger(m, load(&scores[g][k]));
            float now = largest(m);
            now = now > high[g] ? now : high[g];
            float shrink = high[g] == -INFINITY ? 0 : std::exp(high[g] - now);
            vec s = {};
            for (int64_t k = 0; k < padded; k += W) {
                vec e = exp(load(&scores[g][k]) - now);
                store(&scores[g][k], e);
                s += e;
            }
            float padding = 0;
            for (int64_t k = n; k < padded; k++) padding += scores[g][k];
            if (shrink != 1)
                for (int64_t i = 0; i < d; i++) acc[g * d + i] *= shrink;
            total[g] = total[g] * shrink + (sum(s) - padding);
            high[g] = now;
        }
    }

    void finish(float *const *out) {
        for (int g = 0; g < Q; g++)
            for (int64_t i = 0; i < d; i++) out[g][i] = acc[g * d + i] / total[g];
    }
};

// Q queries of one row and one kv head, at column j of the pass.
template <int Q>
void attend(const Attention &a, int64_t row, int64_t head, int64_t j, int64_t first_query) {
    alignas(64) float scores[Q][TILE];
    alignas(64) float acc[Q * MAX_D];
    const float *q[Q];
    float *out[Q];
    int64_t group = a.heads / a.kv_heads;
    for (int g = 0; g < Q; g++) {
        int64_t at = head * group + first_query + g;
        q[g] = a.q + row * a.q_row + j * a.q_t + at * a.q_head;
        out[g] = a.out + ((row * a.t + j) * a.heads + at) * a.d;
    }
    int64_t n_own = a.lengths[row] + j + 1;
    // A sliding window hides all keys but the last `window`, over prefix and own together.
    int64_t hidden = a.window > 0 && a.prefix + n_own > a.window ? a.prefix + n_own - a.window : 0;
    Softmax<Q> softmax(acc, a.d);
    const float *pk = a.prefix_k + head * a.d * a.prefix_padded, *pv = a.prefix_v + head * a.prefix * a.d;
    const float *ok = a.own_k + (row * a.kv_heads + head) * a.capacity * a.d;
    const float *ov = a.own_v + (row * a.kv_heads + head) * a.capacity * a.d;
    int64_t own_at = hidden > a.prefix ? hidden - a.prefix : 0;
    // Scores start at a multiple of W; what stands before `hidden` is left out when they are weighed.
    for (int64_t from = hidden / W * W; from < a.prefix; from += TILE) {
        int64_t to = from + TILE < a.prefix ? from + TILE : a.prefix;
        int64_t skip = hidden > from ? hidden - from : 0, n = to - from - skip, n_joined = 0;
        if (n <= 0) continue;
        prefix_scores<Q>(a, q, pk, from, (to + W - 1) / W * W, scores);
        if (skip)
            for (int g = 0; g < Q; g++)
                for (int64_t k = 0; k < n; k++) scores[g][k] = scores[g][k + skip];
        if (to == a.prefix && n + n_own <= TILE) {  // own keys join the last tile of the prefix
            n_joined = n_own - own_at;
            own_scores<Q>(a, q, ok + own_at * a.d, n_joined, scores, n);
        }
        softmax.weigh(a, scores, n + n_joined);
        add_values<Q>(a, pv + (from + skip) * a.d, n, scores, 0, acc);
        add_values<Q>(a, ov + own_at * a.d, n_joined, scores, n, acc);
        own_at += n_joined;
    }
    for (int64_t from = own_at; from < n_own; from += TILE) {
        int64_t n = from + TILE < n_own ? TILE : n_own - from;
        own_scores<Q>(a, q, ok + from * a.d, n, scores, 0);
        softmax.weigh(a, scores, n);
        add_values<Q>(a, ov + from * a.d, n, scores, 0, acc);
    }
    softmax.finish(out);
}

void keep_new(const Attention &a, int64_t row, int64_t head) {
    for (int64_t j = 0; j < a.t; j++) {
        int64_t to = ((row * a.kv_heads + head) * a.capacity + a.lengths[row] + j) * a.d;
        const float *k = a.k + row * a.k_row + j * a.k_t + head * a.k_head;
        const float *v = a.v + row * a.v_row + j * a.v_t + head * a.v_head;
        for (int64_t i = 0; i < a.d; i++) a.own_k[to + i] = k[i], a.own_v[to + i] = v[i];
    }
}

// What the loops rely on. The caller has compared shapes; only here is it cheap to read every length.
bool fits(const Attention &a) {
    if (a.rows < 0 || a.t < 0 || a.kv_heads < 1 || a.heads % a.kv_heads != 0) return false;
    if (a.d < 1 || a.d > MAX_D || a.window < 0 || a.prefix < 0) return false;
    if (a.prefix_padded < a.prefix || a.prefix_padded % W != 0) return false;
    for (int64_t row = 0; row < a.rows; row++)
        if (a.lengths[row] < 0 || a.lengths[row] > a.capacity - a.t) return false;
    return true;
}

}  // namespace

extern "C" {

// out = x / sqrt(mean(x²) + eps) · weight, per row
void ps_rms_norm(const float *x, const float *weight, float *out, int64_t rows, int64_t d, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *a = x + r * d;
        float *o = out + r * d;
        vec s0 = {}, s1 = {};
        int64_t i = 0;
        for (; i + 2 * W <= d; i += 2 * W) {
            vec u = load(a + i), v = load(a + i + W);
            s0 += u * u;
            s1 += v * v;
        }
        float s = sum(s0 + s1);
        for (; i < d; i++) s += a[i] * a[i];
        float k = 1.0f / std::sqrt(s / d + eps);
        for (i = 0; i + W <= d; i += W) store(o + i, load(a + i) * k * load(weight + i));
        for (; i < d; i++) o[i] = a[i] * k * weight[i];
    }
}

// out = act(gate) · up
void ps_silu_gated(const float *gate, const float *up, float *out, int64_t n) { gated<silu>(gate, up, out, n); }
void ps_gelu_gated(const float *gate, const float *up, float *out, int64_t n) { gated<gelu>(gate, up, out, n); }

// Rotary embedding, the two halves of a head being the pairs. x (row, head, d) with row stride; cos, sin (row or 1, d).
void ps_rotary(const float *x, const float *cos, const float *sin, float *out, int64_t rows, int64_t heads, int64_t d,
               int64_t x_row, int64_t cos_row) {
    int64_t h = d / 2;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *__restrict c = cos + r * cos_row, *__restrict s = sin + r * cos_row;
        for (int64_t k = 0; k < heads; k++) {
            const float *__restrict a = x + r * x_row + k * d;
            float *__restrict o = out + (r * heads + k) * d;
            for (int64_t i = 0; i < h; i++) o[i] = a[i] * c[i] - a[i + h] * s[i];
            for (int64_t i = 0; i < h; i++) o[i + h] = a[i + h] * c[i + h] + a[i] * s[i + h];
        }
    }
}

// The row's new keys and values join its own; then each query attends to the shared prefix and to its row's own.
// Nothing is written, and the answer is not 0, where that would lie outside of what is there.
int32_t ps_attend(const Attention *attention) {
    const Attention &a = *attention;
    if (!fits(a)) return 1;
    int64_t group = a.heads / a.kv_heads;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t row = 0; row < a.rows; row++)
        for (int64_t head = 0; head < a.kv_heads; head++) {
            keep_new(a, row, head);
            for (int64_t j = 0; j < a.t; j++) {
                int64_t g = 0;
                for (; g + 4 <= group; g += 4) attend<4>(a, row, head, j, g);
                if (group - g == 3) attend<3>(a, row, head, j, g);
                if (group - g == 2) attend<2>(a, row, head, j, g);
                if (group - g == 1) attend<1>(a, row, head, j, g);
            }
        }
    return 0;
}

// The first of n samples whose words are no longer what they were, or n. Sample i has counts[i] words: those at places[i]
// of words[i] are compared with before[i]. Each word is a miss of the cache, so those to come are fetched ahead.
int64_t ps_differing(const int64_t *const *words, const int64_t *const *places, const int64_t *const *before,
                     const int64_t *counts, int64_t n) {
    const int64_t AHEAD = 24;
    int64_t found = n;
#pragma omp parallel for schedule(dynamic, 4) reduction(min : found)
    for (int64_t i = 0; i < n; i++) {
        const int64_t *word = words[i], *place = places[i], *was = before[i], count = counts[i];
        int64_t differ = 0;
        for (int64_t j = 0; j < count; j++) {
            if (j + AHEAD < count) __builtin_prefetch(word + place[j + AHEAD]);
            differ |= word[place[j]] ^ was[j];
        }
        if (differ && i < found) found = i;
    }
    return found;
}

// Per row of (row, n): the k largest values so far and their indices from `first` on, in falling order; of equal values
// the first stays. `value` and `index` (row, k) hold what earlier chunks gave. A NaN makes the row's values NaN.
void ps_top_k(const float *x, int64_t rows, int64_t n, int64_t stride, int64_t k, int64_t first, float *value,
              int64_t *index) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *a = x + r * stride;
        float *v = value + r * k;
        int64_t *at = index + r * k;
        auto consider = [&](int64_t i) {
            if (!(a[i] > v[k - 1])) return;
            int64_t j = k - 1;
            for (; j > 0 && a[i] > v[j - 1]; j--) v[j] = v[j - 1], at[j] = at[j - 1];
            v[j] = a[i], at[j] = first + i;
        };
        ivec nan = {};
        int64_t i = 0;
        for (; i + 4 * W <= n; i += 4 * W) {
            ivec hit = {};
            for (int j = 0; j < 4; j++) {
                vec u = load(a + i + j * W);
                hit |= u > splat(v[k - 1]);
                nan |= u != u;
            }
            if (any(hit))
                for (int64_t j = i; j < i + 4 * W; j++) consider(j);
        }
        bool bad = any(nan);
        for (; i < n; i++) {
            bad |= a[i] != a[i];
            consider(i);
        }
        if (bad)
            for (int64_t j = 0; j < k; j++) v[j] = NAN;
    }
}

// Per row of (row, n): the largest x, Σ e^(x − largest), and Σ (x − largest) e^(x − largest).
void ps_softmax_sums(const float *x, int64_t rows, int64_t n, int64_t stride, float *sums) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *a = x + r * stride;
        vec m[4] = {splat(-INFINITY), splat(-INFINITY), splat(-INFINITY), splat(-INFINITY)};
        int64_t i = 0;
        for (; i + 4 * W <= n; i += 4 * W)
            for (int j = 0; j < 4; j++) m[j] = larger(load(a + i + j * W), m[j]);
        float high = largest(larger(larger(m[0], m[1]), larger(m[2], m[3])));
        for (; i < n; i++) high = a[i] > high ? a[i] : high;
        double total = 0, weighted = 0;
        float base = high == -INFINITY ? 0 : high;  // nothing but −∞: sums of nothing
        for (i = 0; i < n;) {
            // float32 sums of a few thousand terms at a time, double ones of those
            vec s = {}, w = {};
            int64_t to = i + 4096 < n ? i + 4096 : n;
            for (; i + W <= to; i += W) {
                vec t = larger(splat(-104.0f), load(a + i) - base), e = exp(t);  // −∞ · 0 is no number; a NaN stays
                s += e;
                w += t * e;
            }
            total += sum(s);
            weighted += sum(w);
            if (i < to) {
                for (; i < to; i++) {
                    float t = a[i] - base, e = std::exp(t);
                    total += e;
                    weighted += e > 0 ? t * e : 0;
                }
            }
        }
        sums[3 * r] = high;
        sums[3 * r + 1] = static_cast<float>(total);
        sums[3 * r + 2] = static_cast<float>(weighted);
    }
}

}  // extern "C"
