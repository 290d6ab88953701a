/* Reads digits of 8x8 pixels, 64 numbers from 0 to 16 each, and prints the class of every one. */
#include <stdio.h>

#include "digits_vit.h"

/* The model takes pixel / 8 - 1; an integer of its input stands for SCALE_M / 2^SCALE_E. */
static int8_t quantised(int pixel)
{
    const int64_t unit = DIGITS_VIT_INPUT_SCALE_M;
    const int64_t value = (pixel - 8) * ((int64_t)1 << (DIGITS_VIT_INPUT_SCALE_E - 3));
    const int64_t nearest = (value + (value < 0 ? -unit : unit) / 2) / unit;
    if (nearest < DIGITS_VIT_INPUT_MIN) {
        return DIGITS_VIT_INPUT_MIN;
    }
    return nearest > DIGITS_VIT_INPUT_MAX ? DIGITS_VIT_INPUT_MAX : (int8_t)nearest;
}

int main(void)
{
    int8_t input[DIGITS_VIT_INPUT_SIZE];
    int16_t logits[DIGITS_VIT_LOGITS_SIZE];
    for (;;) {
        int best = 0;
        for (int i = 0; i < DIGITS_VIT_INPUT_SIZE; ++i) {
            int pixel;
            if (scanf("%d", &pixel) != 1) {
                return 0;
            }
            input[i] = quantised(pixel);
        }
        if (digits_vit_run(input, logits) != 0) {
            return 1;
        }
        for (int i = 1; i < DIGITS_VIT_LOGITS_SIZE; ++i) {
            best = logits[i] > logits[best] ? i : best;
        }
        printf("%d\n", best);
    }
}
