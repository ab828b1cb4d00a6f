// A batch out of a set of images that lies on the GPU: shuffle, shift, flip, cutout and normalisation in one go.

// A block is one image of the batch: number `first + blockIdx.x` in `order`. `views` is null where images stay as
// they are, else two words a number in `order`: dy, dx (each a signed byte), flip, whether a square is cut out; its
// centre's row and column. `table` has the input of each byte, by channel. Images are [3, height, width].
extern "C" __global__ void gather(const unsigned char *images, const unsigned *labels, const unsigned *order,
                                  const unsigned *views, const float *table, size_t first, int height, int width,
                                  int cutout, float *inputs, unsigned *classes) {
    size_t number = first + blockIdx.x;
    unsigned image = order[number];
    unsigned change = views ? views[2 * number] : 0, centre = views ? views[2 * number + 1] : 0;
    int dy = (signed char)(change & 255), dx = (signed char)(change >> 8 & 255);
    bool flip = change >> 16 & 255, cut = change >> 24;
    int top = int(centre & 255) - cutout / 2, left = int(centre >> 8 & 255) - cutout / 2;
    int pixels = height * width;
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
        int row = i / width, column = i % width;
        int y = row + dy, x = (flip ? width - 1 - column : column) + dx;
        bool black = y < 0 || y >= height || x < 0 || x >= width;
        bool mean = cut && row >= top && row < top + cutout && column >= left && column < left + cutout;
        for (int channel = 0; channel < 3; channel++) {
            unsigned byte = black ? 0 : images[(size_t(image) * 3 + channel) * pixels + y * width + x];
            inputs[(size_t(blockIdx.x) * 3 + channel) * pixels + i] = mean ? 0.0f : table[channel * 256 + byte];
        }
    }
    if (threadIdx.x == 0) classes[blockIdx.x] = labels[image];
}
