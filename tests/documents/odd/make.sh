#!/bin/sh
# Makes the files of this folder anew: sh make.sh FOLDER. What each wants is said in README.md.
set -e
# shellcheck disable=SC2164  # set -e
mkdir -p "$1" && cd "$1"

# --- what they show: corners that tell how a page is turned -----------------------------------------------------------
convert -size 64x48 xc:white -fill red -draw 'rectangle 0,0 31,23' -fill blue -draw 'rectangle 32,24 63,47' \
  -fill black -draw 'rectangle 4,30 20,33' png24:one.src.png
convert -size 40x60 xc:yellow -fill green -draw 'rectangle 0,0 19,59' -fill white -draw 'rectangle 24,6 35,20' png24:two.src.png
convert one.src.png -colorspace Gray -threshold 60% -type bilevel bit.src.png

# --- ImageMagick: pictures ---------------------------------------------------------------------------------------------
convert one.src.png -depth 16 -interlace PNG png48:deep-interlaced.png
convert one.src.png -transparent white -type PaletteAlpha png8:palette-transparent.png
convert one.src.png -colorspace Gray -alpha on -channel A -evaluate set 60% grey-half-transparent.png
convert one.src.png -colors 4 -depth 2 -define png:bit-depth=2 -define png:color-type=3 two-bits.png
convert one.src.png -interlace JPEG -sampling-factor 4x1 -quality 90 progressive.jpg
convert one.src.png -colorspace CMYK -quality 92 four-inks.jpg
convert one.src.png -colorspace Gray -quality 92 grey.jpg
convert one.src.png -compress RLE -type Palette BMP3:run-lengths.bmp
convert one.src.png -alpha on -channel A -evaluate set 50% bmp:half-transparent.bmp
convert one.src.png -flip BMP2:old.bmp
convert one.src.png -transparent white -quality 60 -define webp:alpha-quality=50 transparent.webp
convert -delay 50 -size 64x48 xc:white one.src.png -page +8+6 \( two.src.png -resize 20x30\! \) -loop 0 offset-frames.gif
convert one.src.png -resize 256x192 -define jp2:quality=40 -define jp2:number-resolutions=4 levels.jp2
convert \( one.src.png -resize 50x \) \( two.src.png -resize 20x \) icons.ico
convert one.src.png two.src.png layers.psd
convert one.src.png picture.tga
convert one.src.png picture.pcx
convert one.src.png picture.ppm
convert one.src.png picture.dds
convert one.src.png miff:picture.miff
convert one.src.png xpm:picture.xpm

# --- ImageMagick and libtiff's tools: TIFF -----------------------------------------------------------------------------
convert one.src.png -colorspace Lab -compress none lab.tif
convert one.src.png -colorspace CMYK -compress LZW four-inks.tif
convert one.src.png -define quantum:format=floating-point -depth 32 -compress zip floats.tif
convert one.src.png -colorspace Gray -depth 4 -compress none four-bits.tif
convert one.src.png -colorspace Gray -depth 16 -endian MSB -compress zip deep-grey.tif
convert one.src.png two.src.png -transparent white -compress zip transparent-pages.tif
convert one.src.png -compress none plain.src.tif
convert two.src.png -compress none plain2.src.tif
convert bit.src.png -monochrome -depth 1 -compress none bit.src.tif
tiffcp -c g3:1d:fill bit.src.tif g3-filled.tif
tiffcp -c g3:2d -f lsb2msb bit.src.tif g3-reversed-bits.tif
tiffcp -c g4 -r 7 bit.src.tif bit.src.tif g4-strips.tif
tiffcp -c zip:2 -t -w 32 -l 16 plain.src.tif plain2.src.tif tiles.tif
tiffcp -p separate -c lzw:2 plain.src.tif planes.tif
tiffcp -p separate -c none -B plain.src.tif planes-big-endian.tif
tiffcp -r 16 -c jpeg:90 plain.src.tif jpeg-ycc.tif
tiffcp -r 16 -c jpeg:r:90 plain.src.tif jpeg-rgb.tif
tiffcp -r 48 -c webp plain.src.tif webp-inside.tif
tiffcp -c zstd -8 plain.src.tif plain2.src.tif big-zstd.tif
tiffcp -c packbits -r 1 plain.src.tif rows.tif
tiffmedian -C 8 -c lzw plain.src.tif palette.tif
tiffcp plain.src.tif turned.tif && tiffset -s 274 7 turned.tif

# --- libheif: phones ---------------------------------------------------------------------------------------------------
heif-enc -q 90 -t 32 -o thumbnail.heic one.src.png
heif-enc -q 90 -o album.heic two.src.png one.src.png
convert one.src.png -depth 16 png48:deep.src.png
heif-enc -q 90 -b 10 -o ten-bits.heic deep.src.png
heif-enc -q 90 -o half-transparent.heic grey-half-transparent.png
heif-enc -A -q 80 -o phone.avif one.src.png

# --- Ghostscript: prints, faxes and old pages --------------------------------------------------------------------------
printf '%s\n' '%!PS' '<</PageSize [90 60]>> setpagedevice 1 0 0 setrgbcolor 0 30 45 30 rectfill' \
  '0 0 1 setrgbcolor 45 0 45 30 rectfill 0 setgray /Helvetica findfont 10 scalefont setfont 4 10 moveto (Total 5) show' \
  'showpage <</PageSize [50 80]>> setpagedevice 0 0.5 0 setrgbcolor 0 40 50 40 rectfill showpage' > job.ps
printf '%s\n' '%!PS-Adobe-3.0 EPSF-3.0' '%%BoundingBox: 0 0 90 60' '0 30 45 30 rectfill' > drawing.eps
gs() { command gs -q -dNOPAUSE -dBATCH -dSAFER "$@"; }
gs -sDEVICE=pdfwrite -dCompatibilityLevel=1.3 -o distilled.pdf job.ps
gs -sDEVICE=pdfwrite -sColorConversionStrategy=CMYK -o four-inks.pdf job.ps
gs -sDEVICE=pdfwrite -o user-unit.pdf -c '[{ThisPage} <</UserUnit 2.0>> /PUT pdfmark' -f job.ps
gs -sDEVICE=pdfwrite -o cropped.pdf -c '[/CropBox [10 10 45 50] /PAGES pdfmark' -f job.ps
gs -sDEVICE=pdfimage24 -r100 -o scanned.pdf job.ps
gs -sDEVICE=tiffg4 -r204x98 -o fax-coarse.tif job.ps
gs -sDEVICE=tiffg3 -r204x196 -o fax-fine.tif job.ps
gs -sDEVICE=faxg3 -r204x98 -dLastPage=1 -o bare.src.g3 job.ps
fax2tiff -o received.tif -3 -M -X 255 -R 98 bare.src.g3 2> log.src
gs -sDEVICE=tiff48nc -r72 -o deep.src.tif job.ps
tiffcp -c zip deep.src.tif deep-pages.tif
gs -sDEVICE=tiffcrle -r100 -o modified-huffman.tif job.ps
gs -sDEVICE=bmpmono -r72 -dLastPage=1 -o mono.bmp job.ps
gs -sDEVICE=bmp16 -r72 -dLastPage=1 -o sixteen-colours.bmp job.ps
gs -sDEVICE=pngmonod -r72 -dLastPage=1 -o mono.png job.ps

# --- qpdf: what is done to documents afterwards ------------------------------------------------------------------------
qpdf() { command qpdf --static-id "$@"; }
qpdf --linearize distilled.pdf linear.pdf
qpdf --object-streams=generate --compress-streams=y --recompress-flate distilled.pdf packed.pdf
qpdf --qdf --object-streams=disable distilled.pdf plain.pdf
qpdf --rotate=+90:1 --rotate=180:2 distilled.pdf turned.pdf
qpdf --rotate=270 scanned.pdf scan-turned.pdf
qpdf --empty --pages scanned.pdf 2 distilled.pdf z-1 cropped.pdf 1 -- assembled.pdf
qpdf distilled.pdf --overlay four-inks.pdf --from=2 --to=1 -- overlaid.pdf
qpdf --add-attachment one.src.png -- distilled.pdf attachment.pdf
qpdf --encrypt '' owner 256 --print=none --extract=n -- distilled.pdf rights-aes256.pdf
qpdf --allow-weak-crypto --encrypt '' owner 40 -- distilled.pdf rights-rc4.pdf
qpdf --encrypt user owner 256 -- distilled.pdf locked-aes256.pdf
qpdf --encrypt user owner 128 --use-aes=y -- distilled.pdf locked-aes128.pdf
sed 's/^xref$/xxxx/; s/^startxref$/startxxxx/' plain.pdf > no-table.pdf
{ printf 'HTTP/1.1 200 OK\r\nContent-Type: application/pdf\r\n\r\n'; cat linear.pdf; } > behind-headers.pdf
head -c 900 linear.pdf > cut-off-linear.pdf
tiff2pdf -x 72 -y 72 -o of-tiff.pdf g4-strips.tif
tiff2pdf -j -o of-jpeg-tiff.pdf jpeg-rgb.tif

# --- LibreOffice: office documents -------------------------------------------------------------------------------------
cat > letter.fodt <<'END'
<?xml version="1.0" encoding="UTF-8"?>
<office:document xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0" xmlns:style="urn:oasis:names:tc:opendocument:xmlns:style:1.0" xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0" xmlns:fo="urn:oasis:names:tc:opendocument:xmlns:xsl-fo-compatible:1.0" office:version="1.3" office:mimetype="application/vnd.oasis.opendocument.text">
<office:automatic-styles><style:page-layout style:name="a"><style:page-layout-properties fo:page-width="105mm" fo:page-height="148mm" fo:margin="10mm" fo:background-color="#ffee00"/></style:page-layout>
<style:page-layout style:name="b"><style:page-layout-properties fo:page-width="148mm" fo:page-height="105mm" style:print-orientation="landscape" fo:margin="10mm"/></style:page-layout>
<style:style style:name="P" style:family="paragraph" style:master-page-name="B"><style:paragraph-properties fo:background-color="#0000ff" style:page-number="auto"/></style:style></office:automatic-styles>
<office:master-styles><style:master-page style:name="Standard" style:page-layout-name="a"/><style:master-page style:name="B" style:page-layout-name="b"/></office:master-styles>
<office:body><office:text><text:p>Total 5.60</text:p><text:p text:style-name="P">On its side</text:p></office:text></office:body>
</office:document>
END
printf 'name,price\ntea,2.50\ncake,3.10\n' > sheet.src.csv
cp letter.fodt letter.src.fodt
office() { soffice -env:UserInstallation=file:///tmp/odd-profile --headless --convert-to "$@" > log.src; }
office pdf letter.src.fodt && mv letter.src.pdf letter.pdf
office 'pdf:writer_pdf_Export:{"SelectPdfVersion":{"type":"long","value":"1"}}' letter.src.fodt && mv letter.src.pdf archive.pdf
office 'pdf:writer_pdf_Export:{"EncryptFile":{"type":"boolean","value":"true"},"DocumentOpenPassword":{"type":"string","value":"secret"}}' \
  letter.src.fodt && mv letter.src.pdf locked-letter.pdf
office pdf sheet.src.csv && mv sheet.src.pdf sheet.pdf
office docx letter.src.fodt && mv letter.src.docx letter.docx
office doc letter.src.fodt && mv letter.src.doc letter.doc
office rtf letter.src.fodt && mv letter.src.rtf letter.rtf
office html letter.src.fodt && mv letter.src.html letter.html

# --- FFmpeg: clips. The upper right corner is green by 8 levels a frame ------------------------------------------------
ff() { ffmpeg -v error -y -bitexact "$@"; }
frames="nullsrc=s=64x48:r=10:d=3,format=gbrp,geq=r='255*lt(X,32)*lt(Y,24)':g='8*N*gte(X,32)*lt(Y,24)':b='255*gte(X,32)*gte(Y,24)'"
tone='sine=frequency=440:duration=3'
ff -f lavfi -i "$frames" -pix_fmt yuv420p -c:v libx264 -g 10 base.src.mp4
ff -i base.src.mp4 -c copy -metadata:s:v rotate=90 turned.mov
ff -i base.src.mp4 -c copy -movflags +frag_keyframe+empty_moov fragments.mp4
ff -ss 1.05 -i base.src.mp4 -c copy edit-list.mp4
ff -f lavfi -i "$frames" -f lavfi -i "$tone" -pix_fmt yuv420p -c:v libx264 -c:a aac -b:a 8k -shortest sound.mkv
ff -i one.src.png -i base.src.mp4 -map 1 -map 0 -c:v:0 copy -c:v:1 png -disposition:v:1 attached_pic cover.mp4
ff -f lavfi -i "$frames" -pix_fmt yuv420p10le -c:v libx265 -x265-params log-level=error -tag:v hvc1 ten-bits.mp4
ff -f lavfi -i "$frames" -pix_fmt yuva420p -c:v libvpx -b:v 100k -auto-alt-ref 0 alpha.webm
ff -f lavfi -i "$frames" -c:v libvpx-vp9 -pix_fmt gbrp rgb-vp9.webm
ff -f lavfi -i "$frames" -pix_fmt yuv420p -c:v libaom-av1 -cpu-used 8 -crf 40 av1.mp4
ff -f lavfi -i "$frames,select='not(between(n\,8\,19))'" -vsync vfr -pix_fmt yuv420p -c:v libx264 uneven.mkv
ff -f lavfi -i "$frames,crop=63:47:0:0" -c:v libx264 -pix_fmt yuv444p odd-size.mp4
ff -f lavfi -i "$frames,fps=25,tinterlace=interleave_top" -pix_fmt yuv420p -c:v mpeg2video -flags +ilme+ildct -b:v 200k interlaced.ts
ff -f lavfi -i "$frames" -pix_fmt yuv420p -c:v libtheora -q:v 6 theora.ogv
ff -f lavfi -i "$frames" -pix_fmt yuv420p -c:v wmv2 -b:v 200k windows.wmv
ff -f lavfi -i "$frames" -pix_fmt yuvj422p -c:v mjpeg -q:v 4 camera.avi
ff -f lavfi -i "$frames,setsar=2" -pix_fmt yuv420p -c:v libx264 oblong.mp4
ff -f lavfi -i "$frames" -f apng -plays 0 moving.png
ff -f lavfi -i "$frames,fps=5" -c:v libwebp_anim -loop 0 moving.webp
ff -f lavfi -i "$frames,split[a][b];[a]palettegen[p];[b][p]paletteuse" moving.gif
ff -f lavfi -i "$tone" -c:a libmp3lame -b:a 8k song.mp3
ff -f lavfi -i "$tone" -c:a aac -b:a 8k voice.m4a
ff -f lavfi -i "$frames,fps=1" -pix_fmt yuv420p -f yuv4mpegpipe raw.y4m
ff -i base.src.mp4 -c copy -bsf:v h264_mp4toannexb -f h264 bare.h264
head -c 1500 base.src.mp4 > cut-off.mp4
rm -f -- *.src*
