CREATE DATABASE memopod_metadata OWNER memopod;
