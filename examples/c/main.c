/* Reads digits of 8x8 pixels, 64 numbers from 0 to 16 each, and prints the class of every one. */
#include <stdio.h>
#include "digits_vit.h"

/* The model takes pixel / 8 - 1; an integer of its input stands for SCALE_M / 2^SCALE_E. */
static int8_t quantised(int pixel)
{
    const int64_t unit = DIGITS_VIT_INPUT_SCALE_M;
    const int64_t value = (pixel - 8) * ((int64_t)1 << (DIGITS_VIT_INPUT_SCALE_E - 3));
    const int64_t nearest = (value + (value < 0 ? -unit : unit) / 2) / unit;
    const int64_t least = nearest > DIGITS_VIT_INPUT_MIN ? nearest : DIGITS_VIT_INPUT_MIN;
    return (int8_t)(least < DIGITS_VIT_INPUT_MAX ? least : DIGITS_VIT_INPUT_MAX);
}

int main(void)
{
    int8_t input[DIGITS_VIT_INPUT_SIZE];
    int16_t logits[DIGITS_VIT_LOGITS_SIZE];
    for (int pixel, count = 0; scanf("%d", &pixel) == 1; count %= DIGITS_VIT_INPUT_SIZE) {
        input[count++] = quantised(pixel);
        if (count == DIGITS_VIT_INPUT_SIZE && digits_vit_run(input, logits) == 0) {
            int best = 0;
            for (int i = 1; i < DIGITS_VIT_LOGITS_SIZE; ++i) {
                best = logits[i] > logits[best] ? i : best;
            }
            printf("%d\n", best);
        }
    }
    return 0;
}
