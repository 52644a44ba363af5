CREATE DATABASE IF NOT EXISTS memopod_metadata CHARACTER SET utf8mb4;
GRANT ALL ON memopod_metadata.* TO 'memopod'@'%';
