// Batches gathered from a set of images, against the definition of shift, flip and cutout written out.
#include "check.h"

#include "../../crates/kd-data/kernels/gather.cu"

struct Change { int dy, dx, flip, cut, row, column; };

static void check(int height, int width, int cutout, bool with_views) {
    const int count = 7, pixels = height * width;
    uint64_t state = height;
    std::vector<unsigned char> images(count * 3 * pixels);
    std::vector<unsigned> labels(count);
    for (unsigned char &byte : images) byte = next_random(state);
    for (unsigned &label : labels) label = next_random(state) % 10;
    std::vector<unsigned> order = {3, 0, 6, 2, 5, 1, 4};
    std::vector<Change> changes = {{0, 0, 0, 0, 0, 0}, {-1, 2, 0, 0, 0, 0}, {1, -1, 1, 1, 0, width - 1}, {0, 0, 1, 1, height / 2, 1},
                                   {height, 0, 0, 0, 0, 0}, {-128, 127, 1, 0, 0, 0}, {0, 1, 0, 1, height - 1, 0}};
    std::vector<unsigned> views;
    for (Change &c : changes) {
        if (!with_views) c = {0, 0, 0, 0, 0, 0};
        views.push_back((c.dy & 255) | (c.dx & 255) << 8 | c.flip << 16 | unsigned(c.cut) << 24);
        views.push_back(c.row | c.column << 8);
    }
    std::vector<float> table = random_floats(768, 2, 5);
    for (size_t first : {0, 2, 6}) {
        const int batch = std::min(3, count - int(first));
        // As augment.rs does it: the shift, then the flip, then the square in the picture as shown.
        std::vector<double> expected(batch * 3 * pixels);
        std::vector<unsigned> classes(batch), found_classes(batch, 99);
        for (int b = 0; b < batch; b++) {
            Change c = changes[first + b];
            unsigned image = order[first + b];
            classes[b] = labels[image];
            for (int channel = 0; channel < 3; channel++) {
                double *plane = &expected[(b * 3 + channel) * pixels];
                for (int y = 0; y < height; y++) {
                    for (int x = 0; x < width; x++) {
                        int fy = y + c.dy, fx = x + c.dx;
                        bool inside = fy >= 0 && fy < height && fx >= 0 && fx < width;
                        int byte = inside ? images[(image * 3 + channel) * pixels + fy * width + fx] : 0;
                        plane[y * width + x] = table[channel * 256 + byte];
                    }
                    if (c.flip) std::reverse(plane + y * width, plane + (y + 1) * width);
                }
                if (!c.cut) continue;
                for (int y = std::max(0, c.row - cutout / 2); y < std::min(height, c.row - cutout / 2 + cutout); y++)
                    for (int x = std::max(0, c.column - cutout / 2); x < std::min(width, c.column - cutout / 2 + cutout); x++)
                        plane[y * width + x] = 0;
            }
        }
        std::vector<float> found = run_twice<float>(expected.size(), [&](float *inputs, bool back) {
            emulate::launch(batch, 5, back, gather, images.data(), labels.data(), order.data(),
                            with_views ? views.data() : nullptr, table.data(), first, height, width, cutout, inputs,
                            found_classes.data());
        });
        compare("inputs", found, expected, 0, 0);
        compare("classes", found_classes, classes, 0, 0);
    }
}

int main() {
    for (bool with_views : {false, true}) {
        check(32, 32, 8, with_views);
        check(5, 7, 3, with_views);
        check(1, 2, 4, with_views);
    }
    return finish("gather");
}
