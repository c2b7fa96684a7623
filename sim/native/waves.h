// A waveform (FST) of a Verilated model, written to a file that may fail.
//
// Verilator's writer ends the process when its stream fails (a full disk). So it is given a stream
// that never does: what cannot be written is dropped, and the error is kept for the driver to ask.

#pragma once

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <streambuf>
#include <vector>

#include "fstcpp/fstcpp_writer.h"
#include "verilated_fst_c.h"

namespace waves {

// A stream buffer over a file descriptor that is another's; keeps the first error (errno).
class Sink : public std::streambuf {
  public:
    int error = 0;

    explicit Sink(int fd) : fd(fd), buffer(1 << 20) { setp(buffer.data(), end_of_buffer()); }

    // Write what waits in the buffer.
    int sync() override {
        const char* from = pbase();
        while (from < pptr() && !error) {
            const ssize_t done = ::pwrite(fd, from, size_t(pptr() - from), at + (from - pbase()));
            if (done > 0)
                from += done;
            else if (done == 0 || errno != EINTR)
                error = done == 0 ? EIO : errno;
        }
        at += pptr() - pbase();
        size = std::max(size, at);
        setp(buffer.data(), end_of_buffer());
        return 0;
    }

  protected:
    int_type overflow(int_type c) override {
        sync();
        return traits_type::eq_int_type(c, traits_type::eof()) ? traits_type::not_eof(c)
                                                               : sputc(traits_type::to_char_type(c));
    }
    pos_type seekoff(off_type offset, std::ios_base::seekdir from,
                     std::ios_base::openmode) override {
        const off_t here = at + (pptr() - pbase());
        const off_t base = from == std::ios_base::beg   ? 0
                           : from == std::ios_base::cur ? here
                                                        : std::max(size, here);
        if (base + offset != here) {
            sync();
            at = base + offset;
        }
        return pos_type(base + offset);
    }
    pos_type seekpos(pos_type position, std::ios_base::openmode which) override {
        return seekoff(off_type(position), std::ios_base::beg, which);
    }

  private:
    char* end_of_buffer() { return buffer.data() + buffer.size(); }

    const int fd;
    std::vector<char> buffer;
    off_t at = 0;    // of the buffer's first byte
    off_t size = 0;  // of the file
};

// The two members on the way to the writer's stream are private, and there is no other way: an
// explicit instantiation may name them.
template <auto Member, typename Class, typename Type>
struct Private {
    friend Type& open(Class& object, Type*) { return object.*Member; }
};
fst::Writer*& open(VerilatedFst& object, fst::Writer**);
template struct Private<&VerilatedFst::m_fst, VerilatedFst, fst::Writer*>;
std::ofstream& open(fst::Writer& object, std::ofstream*);
template struct Private<&fst::Writer::m_main_fst_file_, fst::Writer, std::ofstream>;

// The waveform of one model. The descriptor stays the caller's and must outlive it.
class Waves {
  public:
    template <typename Model>
    Waves(Model& model, int fd) : sink(fd) {
        model.trace(&trace, 99);
        trace.open("/dev/null");
        fst::Writer* writer = open(*trace.spTrace(), static_cast<fst::Writer**>(nullptr));
        std::ofstream& stream = open(*writer, static_cast<std::ofstream*>(nullptr));
        static_cast<std::ostream&>(stream).rdbuf(&sink);
        // The writer leaves room for its header, which it writes last.
        const std::vector<char> header(fst::kSharedBlockHeaderSize + fst::HeaderInfo::total_size);
        stream.write(header.data(), std::streamsize(header.size()));
        sink.sync();
    }
    ~Waves() { close(); }

    // Complete the file; return what `error` does.
    int close() {
        trace.close();
        sink.sync();
        return sink.error;
    }
    void dump(uint64_t time) { trace.dump(time); }
    // What went wrong so far: an errno, or 0.
    int error() const { return sink.error; }

  private:
    Sink sink;
    VerilatedFstC trace;
};

}  // namespace waves
