/* Decodes a file over and over, and prints how many pictures are in it and what their
 * samples add up to. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct de265_image;
void *de265_new_decoder(void);
int de265_free_decoder(void *d);
int de265_push_data(void *d, const void *data, int len, int64_t pts, void *user);
int de265_flush_data(void *d);
int de265_decode(void *d, int *more);
const struct de265_image *de265_get_next_picture(void *d);
const uint8_t *de265_get_image_plane(const struct de265_image *im, int channel, int *stride);
int de265_get_image_width(const struct de265_image *im, int channel);
int de265_get_image_height(const struct de265_image *im, int channel);

int main(int argc, char **argv)
{
	static uint8_t data[1 << 20];
	FILE *f = argc == 2 ? fopen(argv[1], "rb") : NULL;
	if (!f)
		return 2;
	int len = (int)fread(data, 1, sizeof data, f);
	for (;;) {
		void *d = de265_new_decoder();
		int more = 1, pictures = 0;
		unsigned sum = 0;
		de265_push_data(d, data, len, 0, NULL);
		de265_flush_data(d);
		while (more) {
			const struct de265_image *im;
			if (de265_decode(d, &more) != 0)
				more = 0;
			while ((im = de265_get_next_picture(d)) != NULL) {
				int stride, w = de265_get_image_width(im, 0), h = de265_get_image_height(im, 0);
				const uint8_t *plane = de265_get_image_plane(im, 0, &stride);
				pictures++;
				for (int y = 0; y < h; y++)
					for (int x = 0; x < w; x++)
						sum = sum * 31 + plane[y * stride + x];
			}
		}
		de265_free_decoder(d);
		printf("%d pictures, %08x\n", pictures, sum);
		fflush(stdout);
		usleep(20000);
	}
}
